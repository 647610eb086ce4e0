#!/bin/sh
# A served judge: start vLLM, check the server, score a folder of videos.
#
# Needs    cac-align; vLLM 0.32 or newer in an environment of its own (pip install vllm); for Qwen3-VL-8B a GPU of 40 GB
#          or more (docs/sizing.md; not tried here: no GPU was at hand)
# Run      sh examples/real/served_judge.sh VIDEOS
#          VIDEOS is a folder with videos and a prompts.jsonl: {"video": "a.mp4", "prompt": "…"}, one line per video
# Change   MODEL      the judge: a folder or a hub id. No CaC weights are published: train your own (docs/full_size.md);
#                     until then Qwen3-VL-8B-Instruct answers the same questions less well (paper: 53.7 against 81.7 %)
#          VLLM       the command of vLLM, for example /opt/vllm/bin/vllm
#          ASKED      how this judge has learnt to be asked: two_turn and temperature of its cac_align.json
#          JUDGE_URL  a server that runs already; then none is started
#          OUT        where everything is written (default: out/served_judge)
#
# The output, with vLLM 0.32 on a CPU and the shipped small judge in the place of the 8B one:
#
#   MODEL=cac_align/miniature/weights/cac VLLM=.vllm/bin/vllm \
#       ASKED="wording: brief, max_new_tokens: 400, margin_s: 0.25, temperature: 11.877" \
#       sh examples/real/served_judge.sh examples/clips --dtype float32 --enforce-eager --max-model-len 4096
#
#   ok     server: http://127.0.0.1:8001/v1 serves 'cac', checkpoint cac_align/miniature/weights/cac
#   note   length: a conversation may have 4096 tokens; 41 frames of 480×832 and an answer of 4096 need about 13,000
#            → --max-model-len 32768 (less is enough for smaller frames)
#   ok     frames: all 40 frames arrive as one video part, 67 tokens per pair of 64×64 frames
#   ok     time stamps: a clip that begins 1000 s later is 24 tokens longer, as its time stamps are
#   ok     structured output: an answer keeps to its JSON schema
#   ok     continuation: a begun answer is continued
#   ok     log-probabilities: asked for by token id: verdicts are exact, however confident
#   ok     settings: the recipe says what the checkpoint's cac_align.json asks for
#   note   processor: the checkpoint's processor takes longer to load here than this check waits
#   higher is better; score: 0 to 1, abnormal up to 0.500
#     score  p_normal  p_abnormal     mass  log_odds  video                         verdict
#    0.2765    0.0000      1.0000   1.0000  -11.4240  examples/clips/anomalous.mp4  abnormal 0.62-0.88 s Motion
#                                                             Anomalies: the blue ball suddenly disappears
#    0.7880    1.0000      0.0000   1.0000   15.5902  examples/clips/normal.mp4     normal
#   page: out/served_judge/scores.html
#
# It took two minutes on two busy cores, most of it the start of vLLM.
set -eu

videos=${1:?"a folder of videos with a prompts.jsonl"}
shift # whatever follows goes to vLLM
: "${MODEL:=Qwen/Qwen3-VL-8B-Instruct}" "${VLLM:=vllm}" "${ASKED:=}" "${JUDGE_URL:=}" "${OUT:=out/served_judge}"
mkdir -p "$OUT"

if [ -z "$JUDGE_URL" ]; then
    JUDGE_URL=http://127.0.0.1:8001
    # Each frame's own time travels in the request, hence --trust-request-mm-kwargs: offer the port to nobody else.
    "$VLLM" serve "$MODEL" --served-model-name cac --host 127.0.0.1 --port 8001 --trust-request-mm-kwargs \
        --limit-mm-per-prompt '{"video": 1, "image": 64}' --media-io-kwargs '{"video": {"num_frames": -1}}' \
        --enable-prefix-caching --max-model-len 32768 "$@" > "$OUT/vllm.log" 2>&1 &
    server=$!
    trap 'kill $server 2> /dev/null || :' EXIT
    until curl --silent --fail "$JUDGE_URL/health" > "$OUT/health.txt"; do
        kill -0 $server 2> /dev/null || { tail -n 20 "$OUT/vllm.log" >&2; exit 1; }
        sleep 2
    done
fi

cat > "$OUT/judge.yaml" << END
components:
  cac: {kind: cac, model: "$JUDGE_URL/v1", served_model: cac, timeout_s: 600${ASKED:+, $ASKED}}
END

# The script ends here if the server loses frames or their times, or gives no exact probabilities.
cac-align doctor --server "$JUDGE_URL" --reward "$OUT/judge.yaml"
cac-align score "$videos" --reward "$OUT/judge.yaml" --ledger "$OUT/ledger.jsonl" --html "$OUT/scores.html"
