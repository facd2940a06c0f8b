#!/usr/bin/env bash
# Builds the fuzz targets for ClusterFuzzLite: for each a program in $OUT, its starting corpus and its options.
#
# ClusterFuzzLite's builder sets SRC and OUT and has `compile_python_fuzzer`, which packs a program with all that it
# imports. efi-image needs firmware that no image may carry, and pe_loader comes without a corpus.
set -euo pipefail
cd "$SRC/ebsfuzz"
python=${PYTHON:-python3}

"$python" -m pip install --require-hashes -r requirements.lock
"$python" -m pip install --no-deps .

for target in lifecycle exit_boot_services boot_services xenstore_ring; do
    # Worlds and faults are found by name when a scenario asks for them, so they are named to whoever packs.
    compile_python_fuzzer "fuzz_targets/$target.py" --paths . --collect-submodules reference_impl \
        --collect-submodules fuzz_targets --collect-submodules guest --collect-submodules oracles
    "$python" -m campaign.seed_corpus "corpus/$target" "$OUT/${target}_seed_corpus.zip"
    printf '[libfuzzer]\nlen_control = 0\nmax_len = 4096\n' >"$OUT/$target.options"
done
