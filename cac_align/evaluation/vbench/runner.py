"""Run VBench's unchanged code inside VBench's own environment, one video at a time. Imports nothing
of cac_align.

The request (a JSON file) has {"dimensions", "videos": [{"path", "sha256", "prompt"}], "rows",
"device", "cache", "imaging_mode"}. For each dimension the model is loaded once; each video's row
is appended to the JSON Lines file "rows" as soon as it exists, so that a killed run resumes. A
row with an error is a video without a score and does not stop the others. A row names VBench's
version, and the imaging_mode and prompt where the value depends on them; under other ones it is
computed again.

One JSON line per row goes to stdout as progress; everything that VBench prints goes to stderr.
Exit status: 0 when every row exists, 3 when weight files are missing (named on stdout with the
commands that fetch them), 4 when the environment cannot import a dimension.

VBench's command line is not used: it needs CUDA, aborts on one bad file and exits with 0 on
failure. Nothing is downloaded here.
"""

import sys

# The script's folder holds a vbench.py and a statistics.py of ours, which would hide the packages of these names.
sys.path[:] = [entry for entry in sys.path if entry != __file__.rpartition("/")[0]]

import json  # noqa: E402
import math  # noqa: E402
import os  # noqa: E402
import tempfile  # noqa: E402
from pathlib import Path  # noqa: E402

DINO = "https://dl.fbaipublicfiles.com/dino/dino_vitbase16_pretrain/dino_vitbase16_pretrain.pth"
CLIP = "https://openaipublic.azureedge.net/clip/models"
BASE_32 = "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af/ViT-B-32.pt"
LARGE_14 = "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836/ViT-L-14.pt"
MUSIQ = "https://github.com/chaofengc/IQA-PyTorch/releases/download/v0.1-weights/musiq_spaq_ckpt-358bb6af.pth"
RAFT = "https://dl.dropboxusercontent.com/s/4j4z58wuv8o0mfz/models.zip"
AESTHETIC = "https://github.com/LAION-AI/aesthetic-predictor/raw/main/sa_0_4_vit_l_14_linear.pth"
UMT = "https://huggingface.co/OpenGVLab/VBench_Used_Models/resolve/main/l16_ptk710_ftk710_ftk400_f16_res224.pth"
VICLIP = "https://huggingface.co/OpenGVLab/VBench_Used_Models/resolve/main/ViClip-InternVid-10M-FLT.pth"

# dimension → [(file below the cache, command that fetches it into {folder})]
WEIGHT_FILES = {
    "subject_consistency": [
        (
            "dino_model/facebookresearch_dino_main/hubconf.py",
            "git clone https://github.com/facebookresearch/dino {folder}",
        ),
        ("dino_model/dino_vitbase16_pretrain.pth", f"wget -P {{folder}} {DINO}"),
    ],
    "background_consistency": [("clip_model/ViT-B-32.pt", f"wget -P {{folder}} {CLIP}/{BASE_32}")],
    "aesthetic_quality": [
        ("clip_model/ViT-L-14.pt", f"wget -P {{folder}} {CLIP}/{LARGE_14}"),
        ("aesthetic_model/emb_reader/sa_0_4_vit_l_14_linear.pth", f"wget -P {{folder}} {AESTHETIC}"),
    ],
    "motion_smoothness": [
        ("amt_model/amt-s.pth", "wget -P {folder} https://huggingface.co/lalala125/AMT/resolve/main/amt-s.pth")
    ],
    "dynamic_degree": [
        (
            "raft_model/models/raft-things.pth",
            f"wget -O {{cache}}/models.zip {RAFT} && unzip -d {{cache}}/raft_model {{cache}}/models.zip",
        )
    ],
    "imaging_quality": [("pyiqa_model/musiq_spaq_ckpt-358bb6af.pth", f"wget -P {{folder}} {MUSIQ}")],
    "temporal_flickering": [],
    "human_action": [("umt_model/l16_ptk710_ftk710_ftk400_f16_res224.pth", f"wget -P {{folder}} {UMT}")],
    "temporal_style": [("ViCLIP/ViClip-InternVid-10M-FLT.pth", f"wget -P {{folder}} {VICLIP}")],
    "overall_consistency": [("ViCLIP/ViClip-InternVid-10M-FLT.pth", f"wget -P {{folder}} {VICLIP}")],
}

PROMPTED = ("human_action", "temporal_style", "overall_consistency")  # what compares a video with its prompt


def missing_weights(dimensions, cache):
    """[(dimension, file, command)] for every weight file that is not in ``cache``, each file once."""
    found, checked = [], set()
    for dimension in dimensions:
        for name, command in WEIGHT_FILES[dimension]:
            file = Path(cache) / name
            if file.is_file() or name in checked:
                continue
            checked.add(name)
            command = command.format(folder=file.parent, cache=cache)
            found.append((dimension, str(file), f"mkdir -p {file.parent.parent} && {command}"))
    return found


def main(path):
    """Read the request at ``path``, compute its missing rows, and return the exit status."""
    request = json.loads(Path(path).read_text(encoding="utf-8"))
    protocol = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # VBench prints freely: only our own lines may reach the caller's pipe

    def report(**line):
        protocol.write(json.dumps(line) + "\n")
        protocol.flush()

    cache = Path(request["cache"]).absolute()
    lacking = missing_weights(request["dimensions"], cache)
    if lacking:
        report(missing=[{"dimension": d, "file": f, "command": c} for d, f, c in lacking])
        return 3
    os.environ["VBENCH_CACHE_DIR"] = str(cache)  # read when vbench.utils is imported, below
    try:
        import torch

        if request["device"] == "cpu":
            torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
        measures = {name: loader_of(name) for name in request["dimensions"]}
    except Exception as error:
        report(environment_error=f"{type(error).__name__}: {error}")
        return 4
    done, version = rows_done(request["rows"]), vbench_version()
    videos = [{**video, "version": version, "imaging_mode": request["imaging_mode"]} for video in request["videos"]]
    todo = [
        (dimension, video)
        for dimension in request["dimensions"]
        for video in videos
        if row_key(video, dimension) not in done
    ]
    report(todo=len(todo), version=version)
    unreadable = {
        path: unreadable_reason(path) for path in dict.fromkeys(video["path"] for _, video in todo)
    }  # decodes each once
    current, measure = None, None
    with open(request["rows"], "a", encoding="utf-8") as rows:
        for number, (dimension, video) in enumerate(todo, 1):
            value, error = None, unreadable[video["path"]]
            if error is None:
                if dimension != current:
                    measure = None  # let the last model go before the next one is loaded
                    current, measure = dimension, measures[dimension](request, cache)
                value, error = measure_or_error(measure, video)
            row = {
                "path": video["path"],
                "sha256": video["sha256"],
                "dimension": dimension,
                "raw": value,
                "error": error,
            }
            row |= {"version": version} | {name: video[name] for name in value_depends_on(dimension)}
            rows.write(json.dumps(row) + "\n")
            rows.flush()
            report(done=number, of=len(todo), path=video["path"], dimension=dimension, error=error)
    return 0


def value_depends_on(dimension):
    """What else a dimension's value depends on, by its name in a row."""
    return ("prompt",) * (dimension in PROMPTED) + ("imaging_mode",) * (dimension == "imaging_quality")


def row_key(item, dimension):
    """What a value belongs to: (path, sha256, dimension, VBench's version, then prompt or
    imaging_mode where it depends on them).

    item: a row, or a video of the request with "version" and "imaging_mode"; missing entries are
    "".
    """
    known = [item.get(name, "") for name in ("version", *value_depends_on(dimension))]
    return item["path"], item["sha256"], dimension, *known


def rows_done(path):
    """The keys of the rows with a value; rows with an error are tried again."""
    found = set()
    if os.path.isfile(path):
        with open(path, encoding="utf-8") as lines:
            for line in lines:
                if line.endswith("\n") and line.strip():
                    row = json.loads(line)
                    if row["error"] is None:
                        found.add(row_key(row, row["dimension"]))
    return found


def vbench_version():
    from importlib.metadata import version

    return version("vbench")


def unreadable_reason(path):
    """Why VBench must not read this file, or None.

    OpenCV, which VBench uses, silently shortens a damaged file; decord fails at its last frame.
    """
    if not path.endswith((".mp4", ".gif")):
        return f"VBench reads .mp4 and .gif, received {os.path.splitext(path)[1]!r}; re-encode it as mp4"
    try:
        import decord

        reader = decord.VideoReader(path, num_threads=1)
        reader.get_batch([len(reader) - 1])
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        return f"unreadable: {type(error).__name__}: {lines[0][:200]}"
    return None


def measure_or_error(measure, video):
    """(value, None) or (None, why there is none). Nothing that happens to one video may stop the
    others.
    """
    try:
        value = measure(video)
    except Exception as error:
        return None, f"{type(error).__name__}: {str(error)[:300]}"
    if isinstance(value, bool):
        return value, None
    value = float(value)
    return (value, None) if math.isfinite(value) else (None, f"VBench returned {value}")


def single_value(results, path):
    """The value of VBench's only per-video row; VBench silently leaves out videos that it cannot
    read.
    """
    rows = results[1]
    if len(rows) != 1 or rows[0]["video_path"] != path:
        raise ValueError(f"VBench returned {len(rows)} rows for one video")
    return rows[0]["video_results"]


# ---- one loader per dimension: (request, cache) → measure(video) → number or bool ----------------------------


def loader_of(dimension):
    """Import the dimension's module at once, so that a faulty environment shows before any work;
    return its loader.
    """
    import importlib

    module = importlib.import_module(f"vbench.{dimension}")
    if dimension in LOADERS:
        return lambda request, cache: LOADERS[dimension](module, request, cache)
    return lambda request, cache: by_prompt(module, dimension, request)


def submodules(dimension):
    """VBench's own table of files for a dimension. All files are known to exist, so it downloads
    nothing.
    """
    from vbench.utils import init_submodules

    return init_submodules([dimension], local=True)[dimension]


def subject_consistency(module, request, cache):
    import torch

    # DINO's hubconf ignores VBench's `path` and looks in torch.hub's checkpoints: put the file there.
    hub = cache / "torch_hub"
    (hub / "checkpoints").mkdir(parents=True, exist_ok=True)
    link = hub / "checkpoints" / "dino_vitbase16_pretrain.pth"
    if not link.exists():
        link.symlink_to(cache / "dino_model" / "dino_vitbase16_pretrain.pth")
    torch.hub.set_dir(str(hub))
    files = submodules("subject_consistency")
    model = torch.hub.load(**files)  # a torch module, which the stubs do not say
    model = model.to(request["device"])  # pyright: ignore[reportAttributeAccessIssue]
    return lambda video: single_value(
        module.subject_consistency(model, [video["path"]], request["device"], files["read_frame"]), video["path"]
    )


def background_consistency(module, request, cache):
    import torch

    path, read_frame = submodules("background_consistency")
    model, preprocess = module.clip.load(path, device=request["device"])

    def measure(video):
        with torch.no_grad():  # VBench forgets it and keeps the whole graph
            results = module.background_consistency(model, preprocess, [video["path"]], request["device"], read_frame)
        return single_value(results, video["path"])

    return measure


def aesthetic_quality(module, request, cache):
    clip_path, folder = submodules("aesthetic_quality")
    linear = module.get_aesthetic_model(folder).to(request["device"])
    model, _ = module.clip.load(clip_path, device=request["device"])
    return lambda video: single_value(
        module.laion_aesthetic(linear, model, [video["path"]], request["device"]), video["path"]
    )


def imaging_quality(module, request, cache):
    import torch

    model = module.MUSIQ(pretrained_model_path=submodules("imaging_quality")["model_path"])
    model.to(request["device"])
    model.training = False
    mode = request["imaging_mode"]

    def measure(video):
        with torch.no_grad():
            results = module.technical_quality(
                model, [video["path"]], request["device"], imaging_quality_preprocessing_mode=mode
            )
        return single_value(results, video["path"])

    return measure


def temporal_flickering(module, request, cache):
    return lambda video: single_value(module.temporal_flickering([video["path"]]), video["path"])


def motion_smoothness(module, request, cache):
    files = submodules("motion_smoothness")
    motion = module.MotionSmoothness(files["config"], files["ckpt"], request["device"])
    return lambda video: single_value(module.motion_smoothness(motion, [video["path"]]), video["path"])


def dynamic_degree(module, request, cache):
    settings = {"small": False, "mixed_precision": False, "alternate_corr": False}
    args = module.edict({"model": submodules("dynamic_degree")["model"], **settings})
    dynamic = module.DynamicDegree(args, request["device"])

    def measure(video):
        moved = bool(dynamic.infer(video["path"]))
        if (
            dynamic.params["count_num"] < 1
        ):  # round(4 · 2 / 16) is 0: with one or two sampled frames the answer is fixed beforehand
            raise ValueError(
                "too short for dynamic_degree: VBench samples fewer than three frames at 8 fps and then ignores motion"
            )
        return moved

    return measure


def by_prompt(module, dimension, request):
    """Dimensions that need the prompt: VBench's own compute function on a list of one video, which
    loads the model each time.
    """
    files = submodules(dimension)
    return lambda video: compute_one(module, dimension, request, files, video["path"], video["prompt"])


def compute_one(module, dimension, request, files, path, prompt):
    """VBench's own compute function on a list of this one video."""
    with tempfile.TemporaryDirectory() as folder:
        listing = os.path.join(folder, "one_full_info.json")
        entry = {"prompt_en": prompt, "dimension": [dimension], "video_list": [path]}
        Path(listing).write_text(json.dumps([entry]), encoding="utf-8")
        return single_value(getattr(module, f"compute_{dimension}")(listing, request["device"], files), path)


def human_action(module, request, cache):
    """VBench reads the action from the file's name, never from the prompt; it is given a link with
    such a name.
    """
    files, actions = submodules("human_action"), set(module.build_dict().values())

    def measure(video):
        action = action_of(video["prompt"], actions)
        with tempfile.TemporaryDirectory() as folder:
            link = os.path.join(folder, f"a person is {action}-0{os.path.splitext(video['path'])[1]}")
            os.symlink(os.path.abspath(video["path"]), link)
            return compute_one(module, "human_action", request, files, link, video["prompt"])

    return measure


def action_of(prompt, actions):
    """The action of "A person is ACTION", among VBench's own (``actions``, in lower case).

    Raises ``ValueError`` for any other prompt, to which VBench would answer "no" whatever the video
    shows.
    """
    _, person, action = prompt.lower().strip().removesuffix(".").rpartition("person is ")
    # The last condition is what VBench reads out of the link's name.
    if not person or action not in actions or "/" in action or action.split("-")[0].split("_")[0] != action:
        raise ValueError(
            f"human_action knows prompts of the form 'A person is ACTION' with one of its {len(actions)} actions, "
            f"received {prompt!r}; nothing was measured"
        )
    return action


LOADERS = {
    "subject_consistency": subject_consistency,
    "background_consistency": background_consistency,
    "aesthetic_quality": aesthetic_quality,
    "imaging_quality": imaging_quality,
    "temporal_flickering": temporal_flickering,
    "motion_smoothness": motion_smoothness,
    "dynamic_degree": dynamic_degree,
    "human_action": human_action,
}

if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
