# shellcheck shell=bash
# The environment of scripts/gpu_suite.sh: the build, CUDA's libraries, the device, and facts about the machine.

usage_error() {
  echo "gpu_suite: $*" >&2
  exit 2
}

# ---- the build --------------------------------------------------------------------------------------------------------------
programs=(nacre bench/nacre_bench tests/nacre_tests)
lacks() {
  local p
  for p in "${programs[@]}"; do [ -x "$build/$p" ] || { echo "$p"; return; }; done
}
find_build() { # sets build, build_seconds
  local nvcc start
  build_seconds=0
  if [ -n "$build" ]; then
    [ -d "$build" ] || usage_error "--build $build: no such folder"
    [ -z "$(lacks)" ] || usage_error "--build $build: has no $(lacks)"
  else
    build=$root/build/cuda
    [ -z "$(lacks)" ] || make_build
  fi
  build=$(readlink -f "$build")
}
make_build() {
  local nvcc start=$SECONDS
  nvcc=$(command -v nvcc) || nvcc=${CUDA_HOME:-/usr/local/cuda}/bin/nvcc
  if ! command -v cmake >/dev/null || [ ! -x "$nvcc" ]; then
    echo "gpu_suite: build/cuda has no $(lacks), and cmake or nvcc to build it is missing" >&2
    exit 4
  fi
  echo "building build/cuda with $nvcc"
  mkdir -p "$root/build/cuda"
  if ! (cd "$root" && cmake --preset cuda -DCMAKE_CUDA_COMPILER="$nvcc" && cmake --build --preset cuda -j "$(nproc)" \
    --target nacre_program nacre_bench nacre_tests "${probes_target[@]}") >"$root/build/cuda/suite.log" 2>&1; then
    grep -E 'rror|FAILED' "$root/build/cuda/suite.log" | head -n 20
    echo "gpu_suite: the build failed: build/cuda/suite.log" >&2
    exit 4
  fi
  build_seconds=$((SECONDS - start))
  echo "built in $build_seconds s"
}
# Trees without the sources of the probes do not have this target.
probes_target=()
[ ! -d "$root/bench/probes" ] || probes_target=(nacre_probes)

# ---- libraries ----------------------------------------------------------------------------------------------------------------
find_libraries() { # sets S_LIBRARIES, built, compiler
  local known packages='' library place found text
  S_LIBRARIES=''
  if [ -d "$build/lib" ]; then
    S_LIBRARIES=$build/lib
    # Use the packing machine's C++ library only if this machine's is missing or older.
    ours "$build/nacre" --version >/dev/null 2>&1 || S_LIBRARIES=$build/lib:$build/lib/fallback
  fi
  # If the system does not find CUDA's libraries by itself, use those of the toolkit or of a PyTorch that contains them.
  # They come last in the search path.
  known=$(ldconfig -p 2>/dev/null || /sbin/ldconfig -p 2>/dev/null)
  for library in libcufft libcublas libcudnn; do
    [[ ":$known:${LD_LIBRARY_PATH:-}" != *"$library.so."* ]] || continue
    [ -n "$packages" ] ||
      packages=$("$S_PYTHON" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])' 2>/dev/null) || packages=none
    for place in "${CUDA_HOME:-/usr/local/cuda}"/{lib64,targets/*/lib} "$packages"/nvidia/*/lib; do
      for found in "$place/$library".so.*; do
        [ -e "$found" ] || continue
        [[ ":$S_LIBRARIES:" == *":$place:"* ]] || S_LIBRARIES+=${S_LIBRARIES:+:}$place
        break 2
      done
    done
  done
  if ! text=$(nacre --version 2>&1); then
    echo "gpu_suite: $build/nacre does not start: $(head -n 1 <<<"$text")" >&2
    exit 4
  fi
  built=$(sed -n 's/^commit //p' <<<"$text")
  compiler=$(sed -n 's/^built by //p' <<<"$text")
}

# ---- the device -------------------------------------------------------------------------------------------------------------
# Sets CUDA_VISIBLE_DEVICES. Every program, including PyTorch, then sees only this GPU, and the tests need no option.
choose_device() { # cuda or cuda:N
  local index visible
  S_DEVICE=cuda
  [[ $1 == cuda:* && $1 != cuda:0 ]] || return 0
  index=${1#cuda:}
  if [ -n "${CUDA_VISIBLE_DEVICES:-}" ]; then
    IFS=, read -r -a visible <<<"$CUDA_VISIBLE_DEVICES"
    [ "$((10#$index))" -lt ${#visible[@]} ] ||
      { echo "gpu_suite: device $1: CUDA_VISIBLE_DEVICES has ${#visible[@]}" >&2; exit 6; }
    export CUDA_VISIBLE_DEVICES=${visible[$((10#$index))]}
  else
    export CUDA_VISIBLE_DEVICES=$((10#$index))
  fi
}
# Runs `nacre info`, which initialises the driver. Exits with 6 if the driver hangs.
asked_of_driver() { # stream (out or err), arguments; sets text, code
  if [ "$1" = err ]; then
    text=$(ours timeout -k 5 "$S_ANSWER" "$S_BUILD/nacre" info "${@:2}" 2>&1 >/dev/null)
  else
    text=$(ours timeout -k 5 "$S_ANSWER" "$S_BUILD/nacre" info "${@:2}" 2>/dev/null)
  fi
  code=$?
  [ $code = 124 ] || [ $code = 137 ] || return 0
  echo "gpu_suite: nacre info ${*:2} did not end within $S_ANSWER s: the driver does not answer" >&2
  exit 6
}
find_device() { # cuda or cuda:N; sets S_EMULATED, small
  local text code
  # With CUDA_VISIBLE_DEVICES set, messages would name cuda:0 instead of the chosen GPU.
  asked_of_driver err speech-16k-small --memory --device "$S_DEVICE"
  if [ $code != 0 ]; then
    text=$(grep -v '^$' <<<"$text" | tail -n 1)
    echo "gpu_suite: --device $1: ${text#nacre: }" >&2
    [ $code = 6 ] || echo "gpu_suite: nacre info --device ended with exit code $code" >&2
    exit 6
  fi
  S_EMULATED=0
  if grep -q '^NACRE_CUDA:STRING=emulated' "$build/CMakeCache.txt" 2>/dev/null; then
    S_EMULATED=1
    [ "$small" = 1 ] || echo "the device of $build is emulated: using --small"
    small=1
  fi
}

# ---- facts about the machine -----------------------------------------------------------------------------------------
find_commit() { # sets commit, stale
  local text wish
  commit=unknown stale=''
  if [ -f "$root/COMMIT" ]; then
    commit=$(head -n 1 "$root/COMMIT")
  elif text=$(git -C "$root" rev-parse HEAD 2>/dev/null); then
    commit=$text
    [ -z "$(git -C "$root" status --porcelain --untracked-files=no 2>/dev/null)" ] || commit+=+changes
  fi
  # The programs contain the commit shortened, with the suffix "-dirty" for local changes.
  text=${built%-dirty} wish=${commit%+changes}
  wish=${wish:0:${#text}}
  [[ $commit != *+changes ]] || wish+=-dirty
  [ "$commit" = unknown ] || [ "$built" = "$wish" ] || stale="the programs were built from ${built:-an unknown commit}"
  [ -z "$stale" ] || echo "WARNING: $stale, this is $commit"
}
find_versions() { # sets gpu, driver, cuda_version, clocks, devices
  local text code
  driver='' gpu='' cuda_version='' clocks=''
  if [ "$S_EMULATED" = 0 ]; then
    # For a report without benches, which otherwise name the device. With several GPUs, this does not identify the one
    # used.
    gpu=$(smi --query-gpu=name --format=csv,noheader | sort -u)
    [ "$(wc -l <<<"$gpu")" = 1 ] || gpu=''
    driver=$(smi --query-gpu=driver_version --format=csv,noheader | head -n 1)
    cuda_version=$(smi | sed -n 's/.*CUDA Version: *\([0-9.]*\).*/\1/p' | head -n 1)
    clocks=$(smi --query-gpu=clocks.max.sm,clocks.max.mem,power.limit --format=csv,noheader | head -n 1)
  fi
  [ -n "$driver" ] ||
    driver=$(sed -n 's/^NVRM version:.* \([0-9][0-9]*\.[0-9.]*\) .*/\1/p' /proc/driver/nvidia/version 2>/dev/null)
  # The devices as nacre itself lists them, if this version supports that.
  asked_of_driver out --devices
  devices=()
  [ -z "$text" ] || mapfile -t devices <<<"$text"
}
