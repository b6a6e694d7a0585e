#!/usr/bin/env bash
# Checks nvcc's output for the kernels: registers, shared memory and spills (from ptxas), and the instructions that some
# kernels rely on (from the PTX in the library). The limits below apply to every kernel; scripts/kernel_limits.txt has
# the exceptions. If tests have run on the emulated device before, the script also checks that no kernel was launched
# with more threads than its registers and its launch bounds allow.
#
#   scripts/check_kernels.sh BUILD.log libnacre.a [LAUNCHES]
#
#   BUILD.log   the output of a complete build with -Xptxas=-v
#   LAUNCHES    the folder of NACRE_EMULATION_LAUNCHES during the tests
set -euo pipefail
log=$1 library=$2 launches=${3:-}
cd "$(dirname "${BASH_SOURCE[0]}")/.."
table=scripts/kernel_limits.txt  # part of a name, most registers, reason; "spills" before the reason allows spills

# One line per kernel and architecture: name, sm, registers, static shared memory, stack, spilled bytes.
awk '
  /Compiling entry function/ { match($0, /\x27[^\x27]+\x27/); mangled = substr($0, RSTART + 1, RLENGTH - 2)
                               match($0, /sm_[0-9a]+/); sm = substr($0, RSTART, RLENGTH); next }
  /bytes stack frame/        { stack = $1; spill = 0; for (i = 1; i < NF; ++i) if ($(i + 1) == "bytes" && $(i + 2) == "spill") spill += $i }
  /ptxas info    : Used/     { match($0, /Used [0-9]+ registers/); registers = substr($0, RSTART + 5) + 0; shared = 0
                               if (match($0, /[0-9]+ bytes smem/)) shared = substr($0, RSTART) + 0
                               print mangled, sm, registers, shared, stack, spill }' "$log" |
  while read -r mangled rest; do echo "$(c++filt -p "$mangled" | sed -E 's/ /_/g') $mangled $rest"; done > "$log.kernels"
kernels=$(wc -l < "$log.kernels")
[ "$kernels" -gt 0 ] || { echo "$0: $log shows no kernels; expected the log of a complete build with -Xptxas=-v" >&2; exit 1; }

bad=0
say() { echo "check_kernels: $*" >&2; bad=1; }
grep -q 'sm_80' "$log.kernels" || say "no machine code for sm_80"
grep -q 'sm_90a' "$log.kernels" || say "no machine code for sm_90a"

# With 128 registers, two blocks of 256 threads fit on a multiprocessor. 255 is the hardware's limit per thread.
while read -r name mangled sm registers shared stack spill; do
  limit=168 exempt=
  while read -r pattern most why; do
    [ -n "$pattern" ] && [[ $pattern != \#* ]] || continue
    if [[ $name == *"$pattern"* ]]; then limit=$most; exempt=$why; fi
  done < "$table"
  [ "$registers" -le "$limit" ] || say "$name for $sm uses $registers registers, at most $limit"
  [ "$shared" -le 49152 ] || say "$name for $sm uses $shared bytes of static shared memory"
  [ "$spill" -eq 0 ] || [[ ${exempt:-} == spills* ]] || say "$name for $sm spills $spill bytes"
  [ "$stack" -eq 0 ] || [[ ${exempt:-} == spills* ]] || say "$name for $sm has a stack frame of $stack bytes"
done < "$log.kernels"

# Check the instructions in the PTX for newer GPUs.
ptx=$(mktemp); trap 'rm -f "$ptx"' EXIT
strings -n 4 "$library" > "$ptx"
grep -q '^\.target sm_80' "$ptx" || say "no compute_80 PTX in $library"
awk '/^(\.visible |\.weak )?\.entry / { name = $0; sub(/.*\.entry /, "", name); sub(/\(.*/, "", name) }
     name != "" { if (/ld\.global\.(nc\.)?v4/) v4[name] = 1; if (/st\.global\.v4/) s4[name] = 1
                  if (/mma\.sync/) mma[name] = 1; if (/cp\.async/) async[name] = 1; seen[name] = 1 }
     name != "" && $1 == ".maxntid" { bound[name] = $2 + 0 }
     END { for (n in seen) print n, v4[n] + 0, s4[n] + 0, mma[n] + 0, async[n] + 0, n in bound ? bound[n] : 1024 }' "$ptx" > "$log.ptx"
need() {  # need COLUMN WORDS PATTERN...: an instantiation of each kernel must have the instruction
  local column=$1 what=$2; shift 2
  for pattern in "$@"; do
    awk -v p="$pattern" -v c="$column" 'index($1, p) && $c == 1 { found = 1 } END { exit !found }' "$log.ptx" ||
      say "no instantiation of $pattern has $what"
  done
}
need 2 "16-byte loads" snake_forward_kernel snake_backward_kernel elementwise_kernel adamw_update_kernel \
  weight_norm_forward_kernel update_rows_kernel feature_loss_kernel
need 4 "mma.sync" shifted_product_kernel weight_product_kernel vq_nearest_products_kernel
need 5 "cp.async" shifted_product_kernel weight_product_kernel vq_nearest_products_kernel
need 3 "16-byte stores" snake_forward_kernel elementwise_kernel adamw_update_kernel update_rows_kernel \
  feature_loss_kernel

# Check the launches of nacre_tests. A multiprocessor has 65536 registers, which are allocated to warps in units of 256.
# Names are compared in the form that c++filt prints, so that both compilers' names agree.
launched=
if [ -n "$launches" ] && [ -n "$(ls "$launches" 2>/dev/null)" ]; then
  cat "$launches"/* | grep '/nacre_tests ' | awk '$3 > most[$1 " " $2] { most[$1 " " $2] = $3 } END { for (k in most) print k, most[k] }' > "$log.launches"
  while read -r program; do
    if [ ! -e "$program" ]; then
      echo "check_kernels: launches not compared: $program no longer exists; run the emulated tests again" >&2
    elif [ -n "$(find "$launches" ! -newer "$program" -type f -exec grep -lF "$program " {} +)" ]; then
      echo "check_kernels: launches not compared: $program was built after them; run the emulated tests again" >&2
    else
      nm --defined-only "$program" | sed 's/^0*//' | awk -v p="$program" '
        NR == FNR { symbol[$1] = $3; next } $1 == p && $2 in symbol { print symbol[$2], $3 }' - "$log.launches"
    fi
  done < <(cut -d' ' -f1 "$log.launches" | sort -u) > "$log.threads"
  paste -d' ' <(cut -d' ' -f1 "$log.threads" | c++filt -p | sed 's/ /_/g') <(cut -d' ' -f2 "$log.threads") > "$log.named"
  awk 'FILENAME == ARGV[1] { bound[$1] = $6; next }
       FILENAME == ARGV[2] { if ($2 > threads[$1]) threads[$1] = $2; next }
       { all[$1] = 1 }
       $1 in threads { seen[$1] = 1; t = threads[$1]; r = int(($4 + 7) / 8) * 8
         if (t * r > 65536) print "say", $1 " for " $3 " is launched with " t " threads of " $4 " registers, more than 65536 in all"
         if ($2 in bound && t > bound[$2]) print "say", $1 " is launched with " t " threads, its launch bounds are " bound[$2] }
       END { for (k in threads) if (!(k in seen)) print "say", k " is launched by the tests, but nvcc compiled no such kernel"
             for (k in all) { ++m; base = k; sub(/<.*/, "", base); kernels[base] = 1
               if (k in seen) { ++n; run[base] = 1 } else print "unseen", k }
             for (k in kernels) ++of
             for (k in run) ++ran
             print "count", n + 0, m, ran + 0, of }' "$log.ptx" "$log.named" "$log.kernels" > "$log.launched"
  while read -r line; do say "$line"; done < <(sed -n 's/^say //p' "$log.launched")
  read -r seen all ran of < <(sed -n 's/^count //p' "$log.launched")
  # The instantiations that no test launched are the lines "unseen" of $log.launched.
  [ "$seen" -eq 0 ] || launched="; tests launched $ran of $of kernels, $seen of their $all instantiations, within registers and bounds"
fi
[ $bad -eq 0 ] || exit 1
echo "check_kernels: $kernels kernels (sm_80 and sm_90a), at most $(sort -k4,4n "$log.kernels" | tail -1 | cut -d' ' -f4) registers, no spills except those that scripts/kernel_limits.txt allows$launched"
