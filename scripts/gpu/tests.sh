# shellcheck shell=bash
# Parts of scripts/gpu_suite.sh: nacre_tests on the device, and compute-sanitizer over benches and tests.

# ---- tests ----------------------------------------------------------------------------------------------------------------
# When Catch lists names, its exit code is their number.
test_names() { run_tests --list-test-names-only "$@" | sed '/^$/d'; }
one_test() { run_tests "$(named "$1")" -w NoTests --durations no; }
# Tags and names of the tests of training and coding, those of the most critical ops first; all other tests follow.
shipped_path=("[conv1d]" "[snake]" "[snake_conv1d]" "[rvq]" "[vq]" "spectral_loss*" "stft*" "[weight_norm]"
  "[weight_norm_adamw]" "[adamw]" "[step]")
names_in_order() {
  local tag
  {
    for tag in "${shipped_path[@]}"; do test_names "$tag"; done
    test_names
  } | awk '!seen[$0]++'
}
part_tests() {
  local names
  if [ "$S_SMALL" = 1 ]; then
    mapfile -t names < <(test_names "[core],[add],[convert],[tanh],[elu],[adamw]")
  else
    mapfile -t names < <(names_in_order)
    if [ -n "${NACRE_TEST_MODEL:-}" ] && [ -n "${NACRE_TEST_AUDIO:-}" ]; then
      mapfile -t -O "${#names[@]}" names < <(test_names "[trained]")
    fi
  fi
  [ ${#names[@]} -gt 0 ] || { why "nacre_tests lists no tests"; return 1; }
  local name
  for name in "${names[@]}"; do queue one_test "$name"; done
  remember
  work_off 150
  facts "\"cases\": ${#names[@]}, \"passed\": $passed, \"failed\": $(json_list "${failed[@]}")"
  why "$passed of ${#names[@]} tests passed"
  conclude
}

# Cases of nacre_bench that time another library.
baselines='/(cudnn_nhwc|cudnn_nchw|gemm)'

# ---- sanitizer --------------------------------------------------------------------------------------------------------------
# In addition to the small benches, which launch every op: tests with odd shapes, and a complete captured step.
sanitized_tests=(
  "snake" "convert" "balancer" "rms_scale" "waveform_loss" "feature_loss" "adversarial_loss" "adamw"
  "conv1d in bf16 rounds once" "snake_conv1d on tensor cores in tf32" "snake_conv1d in bf16"
  "weight_norm against the reference" "weight_norm_adamw is its three parts"
  "stft: forward, adjoint and their identity" "spectral_loss: losses and gradients against the reference"
  "vq_nearest finds the same codes on every device and by every rung"
  "rvq_forward follows its double reference, and is its stages one by one" "rvq_backward follows its double reference"
  "rvq_backward without the quantisation error follows its double reference"
  "a captured step, replayed, does what running it does"
)
find_sanitizer() {
  local place
  for place in "$(command -v compute-sanitizer)" "${CUDA_HOME:-/usr/local/cuda}/bin/compute-sanitizer" \
    "${CUDA_HOME:-/usr/local/cuda}/extras/compute-sanitizer/compute-sanitizer"; do
    [ -n "$place" ] && [ -x "$place" ] && echo "$place" && return
  done
  return 1
}
sanitize() { # tool, command
  ours "$S_SANITIZER" --tool "$1" --error-exitcode 99 --print-limit 20 "${@:2}"
}
# Split so that each one fits into a plan's share. Other libraries' cases have a suffix after "to:N" and are excluded.
sanitized_benches=('^conv1d_.*/to:[0-9]+/iterations' '^snake' '^(rvq|vq)' '^(spectral|stft)' '^codec_step/.*/bf16/.*captured'
  '^codec_(encode|decode)' '-^(conv1d|snake|rvq|vq|spectral|stft|codec)_?')
sanitized_bench() { # tool, filter
  sanitize "$1" "$S_BUILD/bench/nacre_bench" --device "$S_DEVICE" --small --benchmark_filter="$2"
}
sanitized_test() { # tool, name
  NACRE_TEST_DEVICES=cuda sanitize "$1" "$S_BUILD/tests/nacre_tests" "$(named "$2")" -w NoTests
}
part_sanitizer() {
  S_SANITIZER=$(find_sanitizer) || skip "compute-sanitizer was not found"
  export S_SANITIZER
  # compute-sanitizer needs driver features beyond those of CUDA, which some virtual machines lack.
  if ! sanitize memcheck "$S_BUILD/nacre" info speech-16k-small --memory --device "$S_DEVICE" >"$S_WORK/probe" 2>&1 &&
    grep -qi "device not supported\|unable to initialize\|failed to initialize" "$S_WORK/probe"; then
    cat "$S_WORK/probe"
    skip "compute-sanitizer does not support this device: $(grep -i "not supported\|initialize" "$S_WORK/probe" | head -n 1)"
  fi
  local tool name filter
  [ "$S_SMALL" = 0 ] || sanitized_tests=("convert" "adamw") sanitized_benches=('^(convert|adamw)')
  for tool in memcheck racecheck initcheck synccheck; do
    for filter in "${sanitized_benches[@]}"; do queue sanitized_bench "$tool" "$filter"; done
    for name in "${sanitized_tests[@]}"; do queue sanitized_test "$tool" "$name"; done
  done
  remember
  work_off 150
  facts "\"runs\": $jobs_queued, \"clean\": $passed, \"failed\": $(json_list "${failed[@]}")"
  why "$passed of $jobs_queued runs under memcheck, racecheck, initcheck and synccheck are clean"
  conclude
}
