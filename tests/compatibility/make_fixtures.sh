#!/usr/bin/env bash
# Makes fixtures/version_0_1.tar.xz with the code of commit 67c6abf, the last one before the
# configuration groups decoder and decode became model and generation:
#
#   git worktree add OLD 67c6abf && (cd OLD && python setup.py build_ext --inplace)
#   OLD=$PWD/OLD PYTHON=python bash tests/compatibility/make_fixtures.sh
#
# Everything runs with relative paths in a folder of its own, so that no file holds a path of the
# machine, with one thread and decoder.backend=reference, which every machine can resume.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-python}
export PYTHONPATH=$OLD/src OMP_NUM_THREADS=1 LC_ALL=C
work=$(mktemp -d)
cd "$work"

run() { "$python" "$OLD/scripts/$1.py" "${@:2}"; }
train() { run train "run_dir=$1" "sweep_dir=none" "${@:2}"; }

# SIGTERM within an epoch, once `pattern` is in the log: the run saves last.pt and ends.
stop_at() {
    local folder=$1 pattern=$2
    shift 2
    "$python" "$OLD/scripts/train.py" "run_dir=$folder" sweep_dir=none "$@" &
    local process=$!
    until grep -qs "$pattern" "$folder/train.log"; do sleep 0.01; done
    sleep 0.1
    kill -TERM $process
    wait $process || true
}

"$python" "$here/fixture_files.py" encoder encoder.safetensors
"$python" - > book.txt <<'PYTHON'
for number in range(1, 61):
    colour, thing = ("red", "green", "blue")[number % 3], ("cat", "dog", "bird", "fish")[number % 4]
    print(f"{number}. The {colour} {thing} sees {number % 7} stars; it sings: la la la!")
PYTHON

captions=(
    data.root=scenes data.train=24 data.dev=8 data.test=6 data.size=32 vocabulary.min_count=1
    encoder.name=plain_small encoder.weights=encoder.safetensors encoder.size=32
    decoder.backend=reference decoder.embedding_dim=12 decoder.hidden_size=16
    decoder.input_dropout=0.1 decoder.output_dropout=0.1 optimizer.lr=1e-2
    trainer.batch_by=picture trainer.batch_size=4 trainer.workers=0 trainer.best_metric=CIDEr-D
    trainer.log_steps=1 trainer.progress=false decode=greedy
)
text=(
    data=text data.path=book.txt data.cache_dir=text_cache data.test_fraction=0.1
    encoder=none vocabulary.min_count=1 decode=greedy
    decoder.backend=reference decoder.embedding_dim=6 decoder.hidden_size=12
    decoder.num_layers=2 decoder.layer_dropout=0.1 decoder.output_dropout=0.1
    optimizer.lr=1e-2 trainer.best_metric=loss trainer.batch_size=4 trainer.window=16
    trainer.log_steps=1 trainer.progress=false
)

# Finished runs, and what later commands make of them.
train captioner "${captions[@]}" trainer.epochs=80
train writer "${text[@]}" trainer.epochs=12
run train -m "${text[@]}" sweep_dir=sweep trainer.epochs=1 decoder.hidden_size=10,8
scored=(checkpoint=captioner/best.pt samples=200 report=0)
run evaluate "${scored[@]}" split=train decode=greedy
run evaluate "${scored[@]}" split=dev decode=greedy
run evaluate "${scored[@]}" split=dev decode=beam decode.beam_size=3
run evaluate checkpoint=writer/best.pt split=test
mkdir photos
cp scenes/*/train-0000[0-3].png photos/
run caption checkpoint=captioner/best.pt images=photos/ decode.beam_size=3 decode.n_best=2 \
    out=expected_captions.json
run sample checkpoint=writer/best.pt prompt="The " n=2 length=60 seed=3 out=expected_samples.json
run compare captioner/dev_beam3 captioner/dev_greedy samples=200 out=expected_comparison.json
run leaderboard captioner writer page=board.html out=expected_board.json
run export checkpoint=captioner/best.pt out=caption_model
run export checkpoint=writer/best.pt out=text_model

# Runs stopped within an epoch, and where this code ends them.
stop_at stopped_captioner "epoch 3:" "${captions[@]}" trainer.epochs=6
stop_at stopped_writer "epoch 2:" "${text[@]}" trainer.epochs=4 trainer.ema=0.9 trainer.keep_epochs=2
stop_at stopped_replicas "replica 1: epoch 2:" "${text[@]}" trainer.epochs=4 trainer.replicas=2 \
    "replicas.lr=[1e-2,5e-3]"
mkdir expected stopped
mv stopped_* stopped
cp -r stopped/* .
train stopped_captioner "${captions[@]}" trainer.epochs=6 resume=true
train stopped_writer "${text[@]}" trainer.epochs=4 trainer.ema=0.9 \
    trainer.keep_epochs=2 resume=true
train stopped_replicas "${text[@]}" trainer.epochs=4 trainer.replicas=2 \
    "replicas.lr=[1e-2,5e-3]" resume=true
run average "checkpoint=[stopped_writer/epoch_3.pt,stopped_writer/epoch_4.pt]" out=averaged.pt
# 60 steps from the seed.
train new_captioner "${captions[@]}" encoder.weights=random trainer.epochs=10
train new_writer "${text[@]}" trainer.epoch_windows=10 trainer.epochs=6

"$python" "$here/fixture_files.py" expected new_captioner new_writer stopped_captioner stopped_writer \
    stopped_replicas/replica_0 stopped_replicas/replica_1
rm -r new_* stopped_* expected/new_*.safetensors
mv stopped/* .
mv expected_*.json expected

# TensorBoard's charts, HTML pages and caches are not read by any command.
find . -name tensorboard -prune -exec rm -r {} +
rm -r stopped text_cache averaged.pt board.html sweep/*/*.pt
if grep -rlF -e "$work" -e "$OLD" -e "$here" .; then
    echo "these files hold a path of this machine" >&2
    exit 1
fi
mkdir -p "$here/fixtures"
tar --sort=name --owner=0 --group=0 --numeric-owner --mtime=2026-01-01 -cf - * |
    xz -9e > "$here/fixtures/version_0_1.tar.xz"
ls -l "$here/fixtures"
