#!/usr/bin/env bash
# What .ci/run runs: each step's own count of passed and failed, summed in the last line.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# Not from tests: ONNX Runtime's official builds would.
export ORT_DISABLE_TELEMETRY=1
passed=0
failed=0

# step NAME COMMAND…: a step with no counts of its own is one test.
step() {
  local name=$1
  shift
  echo "── $name"
  if "$@"; then
    passed=$((passed + 1))
  else
    failed=$((failed + 1))
    echo "FAILED: $name"
  fi
}

finish() {
  echo "$passed passed, $failed failed"
  [ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]
  exit $?
}

command -v cmake >/dev/null || (apt-get update -q && apt-get install -qy cmake) || true
# For the test of the server's page, which is skipped without it.
command -v chromium >/dev/null ||
  (timeout 60 apt-get update -q && timeout 300 apt-get install -qy --no-install-recommends chromium) || true

step "npm ci (builds the provider library, the addon and dist/)" npm ci
[ "$failed" -eq 0 ] || finish
step "lint" npm run --silent lint
step "native tests under AddressSanitizer and UndefinedBehaviorSanitizer" bash scripts/test-native-sanitized.sh
step "the npm package installs and works in an empty project" node scripts/test-package.mjs
step "demo" npm run --silent demo

echo "── npm test"
log=$(mktemp)
npm test 2>&1 | tee "$log"
status=${PIPESTATUS[0]}
ran=$(grep -acE '^ *✔ ' "$log")
broke=$(grep -aoE '^ *[0-9]+ (tests? failed|uncaught exceptions?|unhandled rejections?)' "$log" | grep -oE '[0-9]+' | awk '{ n += $1 } END { print n + 0 }')
passed=$((passed + ran))
failed=$((failed + ${broke:-0}))
if [ "$status" -ne 0 ] && [ "${broke:-0}" -eq 0 ]; then failed=$((failed + 1)); fi
if [ "$ran" -eq 0 ]; then failed=$((failed + 1)); fi
finish
