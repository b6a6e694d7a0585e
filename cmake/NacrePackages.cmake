# Reports missing packages in one line, with the Debian packages that contain them.

# nacre_missing(out (found name package)...) sets `out` to a text on all missing packages, or to "". `found` is a target
# or a variable that is true if the package was found.
function(nacre_missing out)
  set(names "")
  set(packages "")
  math(EXPR last "${ARGC} - 1")
  foreach(i RANGE 1 ${last} 3)
    math(EXPR name "${i} + 1")
    math(EXPR package "${i} + 2")
    if(NOT TARGET ${ARGV${i}} AND NOT ${ARGV${i}})
      list(APPEND names "${ARGV${name}}")
      list(APPEND packages "${ARGV${package}}")
    endif()
  endforeach()
  list(JOIN names ", " names)
  list(JOIN packages " " packages)
  if(names)
    set(${out} "${names}, not found (on Debian: apt-get install ${packages})" PARENT_SCOPE)
  else()
    set(${out} "" PARENT_SCOPE)
  endif()
endfunction()

# nacre_needs(who (found name package)...) stops the configuration if a package is missing.
function(nacre_needs who)
  nacre_missing(missing ${ARGN})
  if(missing)
    message(FATAL_ERROR " nacre: ${who} needs ${missing}")  # CMake does not reflow indented lines
  endif()
endfunction()
