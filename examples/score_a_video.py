"""Score one clip with CaC alone and read the evidence: when, where, what.

python examples/score_a_video.py

It prints a score near 0.8 for the normal clip; for the anomalous one a score near 0.2, the reason
"stretched out of shape", and boxes.
"""

from cac_align import CaC
from cac_align.miniature.world.settings import PLAYGROUND
from cac_align.miniature.world.world import make_clip

cac = CaC.miniature()  # a judge behind a server: CaC.load("http://127.0.0.1:8001/v1", served_model="cac")
for anomalous in (False, True):
    clip = make_clip(2_000_002, PLAYGROUND, anomalous=anomalous)  # held-out seed, exact ground truth
    (score,) = cac([clip.prompt], [clip.video()])
    print(f"truth: {clip.status}; {clip.prompt}")
    if not score.scored:
        print("  no score:", score.error)  # never a number for a failure
        continue
    print(f"  R = {score.value:.4f}  (P(normal) + P(abnormal) = {score.parts['mass']:.3f})")
    for anomaly in score.evidence.anomalies:
        print(f"  {anomaly.type}, {anomaly.window.start_s:.2f}-{anomaly.window.end_s:.2f} s: {anomaly.reason}")
        for frame, boxes in sorted(anomaly.boxes.items())[:2]:
            print(f"    frame {frame}: {[box.to_json() for box in boxes]}")
