# shellcheck shell=bash
# The output of scripts/gpu_suite.sh: its folder, suite.json, the archive to bring back, and a plain report without
# Python.

facts_of_calls=(suite cases probes mission headline bench baselines peers-eager peers-compiled peers-jax)
open_folder() { # creates the folders of --out and --bring
  local file
  if ! mkdir -p "$out/state" 2>/dev/null || [ ! -w "$out" ]; then
    echo "gpu_suite: --out $out: cannot be written" >&2
    exit 4
  fi
  out=$(readlink -f "$out")
  [ -n "$bring" ] || return 0
  if ! mkdir -p "$bring" 2>/dev/null || [ ! -w "$bring" ]; then
    echo "gpu_suite: --bring $bring: cannot be written" >&2
    exit 4
  fi
  bring=$(readlink -f "$bring")
}
# Results of another commit, build, device or size are moved aside, so that they do not mix with the new ones.
begin_results() { # what the results depend on
  local file
  if [ "$(cat "$out/state/key" 2>/dev/null)" != "$1" ]; then
    if [ -f "$out/suite.json" ]; then
      rm -rf "$out/earlier"
      mkdir "$out/earlier"
      for file in "${facts_of_calls[@]/%/.json}" "$out"/mission-*; do
        file=$out/${file##*/}
        [ ! -f "$file" ] || mv "$file" "$out/earlier/"
      done
      for file in "$out"/*.log; do [ ! -f "$file" ] || mv "$file" "$out/earlier/"; done
      echo "results of another commit, build, device or size are moved to $out/earlier"
    fi
    rm -rf "$out/state"
    mkdir -p "$out/state"
    printf '%s\n' "$1" >"$out/state/key"
  fi
}
write_suite() {
  local part first=1
  {
    printf '{"suite": 1,\n "built": %s,\n "compiler": %s,\n "warning": %s,\n' "$(json "$built")" "$(json "$compiler")" \
      "$(json "$stale")"
    printf ' "commit": %s,\n "made": %s,\n "device": %s,\n "plan": %s,\n' "$(json "$commit")" \
      "$(json "$(date -u +%Y-%m-%dT%H:%M:%SZ)")" "$(json "$device")" "$(json "$plan")"
    printf ' "small": %s,\n "emulated": %s,\n' "$(yes_or_no "$small")" "$(yes_or_no "$S_EMULATED")"
    printf ' "gpu": %s,\n "driver": %s,\n "cuda": %s,\n "clocks": %s,\n' "$(json "$gpu")" "$(json "$driver")" \
      "$(json "$cuda_version")" "$(json "$clocks")"
    printf ' "devices": %s,\n' "$(json_list "${devices[@]}")"
    printf ' "host": {"system": %s, "cpu": %s, "cores": %d},\n "build_seconds": %d,\n "parts": [' "$(json "$(uname -srm)")" \
      "$(json "$(sed -n 's/^model name[[:space:]]*: //p' /proc/cpuinfo 2>/dev/null | head -n 1)")" "$(nproc)" "$build_seconds"
    for part in "${all_parts[@]}"; do
      [ -f "$out/state/$part" ] || continue
      [ $first = 1 ] || printf ','
      first=0
      printf '\n  '
      cat "$out/state/$part"
    done
    printf ']}\n'
  } >"$out/suite.json.part" && mv "$out/suite.json.part" "$out/suite.json"
}

# ---- bringing results back -------------------------------------------------------------------------------------------
# A few files, each below 16 MiB: one archive of everything except models, which is complete at any time, and the better
# model in pieces. A model of the preset speech-16k (33.3 MB) has two pieces.
piece=16700000
bring_archive() {
  local name=${plan:-suite}
  [ -n "$bring" ] || return 0
  tar -C "$out" --exclude=./earlier --exclude='./mission-*.safetensors' -czf "$bring/$name.tar.gz.part" . 2>/dev/null
  # Exit code 1: a file changed while it was read.
  if [ $? -gt 1 ] || ! mv "$bring/$name.tar.gz.part" "$bring/$name.tar.gz"; then
    echo "   WARNING: $bring/$name.tar.gz could not be written"
  fi
}
better_model() { # sets model to that with the best SNR of any epoch on held-out speech; bf16 if equal
  local precision snr best=''
  model=''
  for precision in bf16 fp32; do
    [ -f "$out/mission-$precision.safetensors" ] || continue
    snr=$(member valid/snr "$out/mission-$precision.jsonl" 2>/dev/null | sort -g | tail -n 1)
    [ -z "$model" ] || awk -v a="$best" -v b="$snr" 'BEGIN { exit !(b != "" && (a == "" || b + 0 > a + 0)) }' || continue
    model=$out/mission-$precision.safetensors best=$snr
  done
}
bring_back() {
  local model
  [ -n "$bring" ] || return 0
  bring_archive
  [[ " ${parts[*]} " == *" mission "* ]] || return 0
  better_model
  [ -n "$model" ] || return 0
  cmp -s "$model" <(cat "$bring/${model##*/}".0? 2>/dev/null) && return
  rm -f "$bring"/mission-*.safetensors.0?
  split -b $piece -d "$model" "$bring/${model##*/}."
}

# ---- a report without Python ----------------------------------------------------------------------------------------------
# scripts/gpu_report.py needs Python. This report puts the JSON files of the folder into one file and adds tables.
plain_report() { # folder
  local name slug file
  name=$(sed -n 's/^ *"description": "\([^",]*\).*/\1/p' "$out/bench.json" "$out/headline.json" 2>/dev/null | head -n 1)
  [ -n "$name" ] || name=$gpu
  slug=$(tr '[:upper:]' '[:lower:]' <<<"${name:-unknown GPU}" | sed 's/[^a-z0-9]\{1,\}/-/g; s/^-*//; s/-*$//')
  [ "$S_EMULATED" = 0 ] || slug=emulated name="Emulated on the CPU"
  set -- "$1/$slug"
  mkdir -p "$1" || return
  {
    printf '{"plain": 1,\n"device": %s,\n"commit": %s,\n"timings": %s' "$(json "$name")" "$(json "$commit")" \
      "$([ $small = 0 ] && echo true || echo false)"
    for file in "${facts_of_calls[@]}"; do
      [ -s "$out/$file.json" ] || continue
      printf ',\n"%s": ' "$file"
      grep -vE '^ *"(host_name|executable|load_avg)":' "$out/$file.json"
    done
    echo "}"
  } >"$1/plain.json.part" && mv "$1/plain.json.part" "$1/plain.json" || return
  {
    printf '# %s\n\nWritten without Python: scripts/gpu_report.py makes the complete page, with peers, from the same folder.\n' "${name:-GPU of unknown name}"
    printf 'Times are in microseconds.\n\n| | |\n|---|---|\n| commit | %s |\n| built from | %s |\n| compiler | %s |\n| driver | %s |\n' \
      "$commit" "$built" "$compiler" "${driver:--}"
    [ ! -f "$out/bench.json" ] || sed -n '/"benchmarks": \[/q; s/^    "\([^"]*\)": "\(.*\)",\{0,1\}$/| \1 | \2 |/p' "$out/bench.json" |
      grep -vE '^\| (host_name|executable|date|commit|compiler) '
    printf '\n## Parts\n\n| part | outcome | s | |\n|---|---|---|---|\n'
    for file in "${all_parts[@]}"; do
      [ ! -f "$out/state/$file" ] ||
        sed 's/^{"part": "\([^"]*\)", "outcome": "\([^"]*\)", "exit": \([0-9]*\), "seconds": \([0-9]*\), "why": "\(\([^"\\]\|\\.\)*\)".*/| \1 | \2 (exit \3) | \4 | \5 |\n/' \
          "$out/state/$file"
    done
    for file in headline bench baselines; do
      [ -f "$out/$file.json" ] || continue
      printf '\n## %s\n\n| case | cold | warm | p10 | p90 | %% copy | %% peak | %% floor | launches | |\n|---|---|---|---|---|---|---|---|---|---|\n' $file
      awk -v timed=$((1 - small)) 'function show(key) { return key in v && (timed || key == "launches") ? sprintf("%.4g", v[key]) : "-" }
        /^    \{/ { delete v; name = error = "" }
        /^ *"[^"]*": / { key = $1; gsub(/[":]/, "", key); value = $0; sub(/^ *"[^"]*": /, "", value); sub(/,$/, "", value); gsub(/"/, "", value)
          if (key == "name") { name = value; sub(/\/iterations:.*/, "", name) }
          else if (key == "error_message") error = value ~ /^skipped/ ? value : "FAILED " value
          else v[key] = value }
        /^    \}/ && name != "" { printf "| %s | %s | %s | %s | %s | %s | %s | %s | %s | %s |\n", name, show("cold_us"), show("warm_us"),
          show("p10_us"), show("p90_us"), show("copy%"), show("peak%"), show("floor%"), show("launches"), error; name = "" }' "$out/$file.json"
    done
  } >"$1/report.md.part" && mv "$1/report.md.part" "$1/report.md" || return
  page=$1/report.md
  echo "   $1/report.md: a simple page, because $S_PYTHON was not found; run scripts/gpu_report.py on $out on a machine with Python"
}
