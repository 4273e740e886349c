"""Build the stand-in for the NVIDIA driver and install it on a lab machine.

The machine finds GPUs, TensorFlow makes devices of them and copies to and from their memory, and whatever computes fails. The
libraries are compiled here: machines have no compiler, and their C library is this machine's or a newer one.
"""

import base64
import io
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
# Source -> the library that it stands for.
LIBRARIES = {"driver.c": "libcuda.so.1", "management.c": "libnvidia-ml.so.1", "runtime.c": "libcudart.so.12"}
FOLDER = "/usr/local/lib/nvidia-stand-in"
GPUS = "/etc/nvidia-stand-in.csv"
RECORD = "/dev/shm/nvidia-stand-in"  # as in machine.h
# A program that loads the CUDA runtime by its name gets this one, which is loaded already. The installed packages stay unchanged.
PRELOAD = f"{FOLDER}/libcudart.so.12"
# Lets systemd enforce the device lists of units in a container with control groups of version 1: podman mounts the one of
# devices read-only, and at another path than systemd expects. The container needs the capability SYS_ADMIN for this, and
# SYS_PTRACE, without which a systemd with SYS_ADMIN cannot start units that have both PrivateUsers and ProtectProc.
ENFORCE_DEVICES = """
path=$(sed -n 's/^[0-9]*:devices://p' /proc/1/cgroup)
own=/sys/fs/cgroup/devices${path%/init.scope}
if [ -d /sys/fs/cgroup/devices ] && ! [ -d "$own/init.scope" ]; then
  mkdir -p /run/devices
  mount --bind /sys/fs/cgroup/devices /run/devices
  mount -o remount,bind,rw /run/devices
  mount -t tmpfs -o mode=755 tmpfs /sys/fs/cgroup/devices
  mkdir -p "$own"
  mount --bind /run/devices "$own"
  umount /run/devices
  systemctl daemon-reexec
fi
"""


def compiler():
    """Return the C compiler's path, or None."""
    return shutil.which("cc") or shutil.which("gcc")


def build(folder):
    """Compile the libraries into a folder."""
    for source, name in LIBRARIES.items():
        command = [compiler() or "cc", "-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-Wno-unused-function"]
        subprocess.run([*command, f"-Wl,-soname,{name}", "-o", Path(folder, name), HERE / source], check=True)


def install_script(gpus):
    """Return a shell script that installs the stand-in on a machine with these GPUs, lines as nvidia-smi prints them."""
    packed = io.BytesIO()
    with tempfile.TemporaryDirectory() as folder, tarfile.open(fileobj=packed, mode="w:gz") as tar:
        build(folder)
        for name in LIBRARIES.values():
            tar.add(Path(folder, name), f"{FOLDER}/{name}")
        for name in ("nvidia-smi", "nvidia-modprobe"):
            tar.add(HERE / "nvidia-smi", f"/usr/local/bin/{name}")
    return (
        f"set -e\nbase64 -d <<'END' | tar -xzf - -C /\n{base64.encodebytes(packed.getvalue()).decode()}END\n"
        f"echo {FOLDER} > /etc/ld.so.conf.d/nvidia-stand-in.conf\necho {PRELOAD} > /etc/ld.so.preload\nldconfig\n"
        f"{ENFORCE_DEVICES}{gpus_script(gpus)}"
    )


def gpus_script(gpus):
    """Return a shell script that gives a machine other GPUs. Processes that have opened one keep it."""
    return f"cat > {GPUS} <<'END'\n{gpus}END\n"
