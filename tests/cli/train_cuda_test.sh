#!/usr/bin/env bash
# nacre train, encode and decode on a CUDA device, real or emulated, if there is one. $1 is the program.
set -u
source "$(dirname "${BASH_SOURCE[0]}")/train_tools.sh"

tiny --checkpoint_dir run_cuda --max_steps 4 --device cuda
if [ "$code" = 6 ]; then
  expect_text "use --device cpu" "--device cuda without one"
  [ "$(wc -l <err)" = 1 ] || fail "--device cuda without one: not one clear line"
else
  expect_code 0 "--device cuda"
  tiny --checkpoint_dir run_cuda --max_steps 6 --device cuda --precision tf32
  expect_code 0 "--device cuda, resumed"
  expect_text "resumed from" "--device cuda, resumed"
  [ -f run_cuda/step-00000006/model.safetensors ] || fail "--device cuda: no checkpoint"
  for device in cuda cpu; do
    "$nacre" encode data/2.wav -m run_cuda -o codes_$device/ --device $device >out 2>err || fail "encode --device $device"
    "$nacre" decode codes_$device/2.nacre -m run_cuda -o speech_$device/ --device $device >out 2>err ||
      fail "decode --device $device"
  done
  [ "$(ls -l codes_cuda/2.nacre | awk '{print $5}')" = "$(ls -l codes_cpu/2.nacre | awk '{print $5}')" ] ||
    fail "streams of both devices differ in size"
  # A failed kernel ends the run with its own message, not one about missing memory, and the saved checkpoints stay.
  for blocking in 0 1; do # with 1, every launch is waited for, so the kernel is known
    export NACRE_EMULATION_BREAK=balancer_norms CUDA_LAUNCH_BLOCKING=$blocking
    tiny --checkpoint_dir run_broken --max_steps 4 --device cuda
    unset NACRE_EMULATION_BREAK CUDA_LAUNCH_BLOCKING
    [ "$code" != 0 ] || continue # a real device does not fail on request
    expect_code 6 "a kernel that fails"
    expect_text "an illegal memory access was encountered" "a kernel that fails"
    expect_text "one of those that this context launched before:" "a kernel that fails"
    [ $blocking = 0 ] || expect_text "that this context launched before: balancer_norms" "a kernel that fails, blocking"
    grep -q "batch_size" err && fail "a kernel that fails is told as a lack of memory"
  done
fi

[ $failures = 0 ] && echo "all is well" || echo "$failures failures"
[ $failures = 0 ]
