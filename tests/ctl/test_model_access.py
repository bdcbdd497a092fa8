import os
import pwd
from pathlib import Path

import pytest

from rolemesh.ctl.model_access import Service, obstacles

LLAMA = "rolemesh-llama@cpu0.service"
IS_ROOT = os.geteuid() == 0


def service(**settings: str) -> Service:
    return Service(unit=LLAMA, settings=settings)


@pytest.mark.parametrize(
    ("path", "settings", "remedy"),
    [
        ("/home/ann/a.gguf", {"ProtectHome": "yes"}, "ProtectHome=read-only"),
        ("/root/a.gguf", {"ProtectHome": "tmpfs"}, "ProtectHome=read-only"),
        ("/home/ann/a.gguf", {"ProtectHome": "read-only"}, ""),
        ("/home/ann/a.gguf", {}, ""),
        ("/tmp/a.gguf", {"PrivateTmp": "yes"}, "PrivateTmp=no"),
        ("/srv/a.gguf", {"ProtectHome": "yes", "PrivateTmp": "yes"}, ""),
        (
            "/home/ann/models/a.gguf",
            {"ProtectHome": "tmpfs", "BindReadOnlyPaths": "/x:/y /home/ann:/home/ann:rbind"},
            "",
        ),
    ],
)
def test_a_sandbox_hides_what_its_settings_say(
    path: str, settings: dict[str, str], remedy: str
) -> None:
    assert service(**settings).hides(Path(path)) == remedy


def test_what_is_hidden_is_told_with_the_drop_in() -> None:
    path = Path("/home/ann/a.gguf")
    found = obstacles((path,), [service(ProtectHome="yes")])
    assert found[0].startswith(f"{path} is out of the sight of {LLAMA}")
    assert found[1:] == [
        "sudo mkdir -p /etc/systemd/system/rolemesh-llama@.service.d",
        "printf '[Service]\\nProtectHome=read-only\\n' | sudo tee "
        "/etc/systemd/system/rolemesh-llama@.service.d/models.conf",
        "sudo systemctl daemon-reload",
        f"or, for good: sudo mv {path} /var/lib/rolemesh/models/",
    ]


def test_nothing_is_in_the_way_of_a_file_that_all_can_read() -> None:
    user = pwd.getpwuid(os.geteuid()).pw_name
    services = [service(User="nobody", Group="nogroup", ProtectHome="yes"), service(User=user)]
    assert obstacles((Path("/etc/passwd"),), services) == []


@pytest.mark.skipif(not IS_ROOT, reason="only root can try what other users may do")
def test_what_keeps_a_user_out_is_named(short_path: Path) -> None:
    short_path.chmod(0o755)
    inner = short_path / "models"
    inner.mkdir(mode=0o700)
    file = inner / "a.gguf"
    file.write_bytes(b"GGUF")
    nobody = service(User="nobody", Group="nogroup")
    assert nobody.barrier([file]) == f"x:{inner}"
    inner.chmod(0o711)
    file.chmod(0o600)
    assert nobody.barrier([file]) == f"r:{file}"
    (found, remedy, *_) = obstacles((file,), [nobody])
    assert found.startswith(f"{file} may not be read by user nobody, as whom {LLAMA} runs")
    assert remedy.startswith(f"sudo setfacl -m u:nobody:r {file}")
    file.chmod(0o604)
    assert nobody.barrier([file]) == ""
    link = short_path / "link.gguf"
    link.symlink_to(file)
    inner.chmod(0o700)
    assert nobody.barrier([link]) == f"x:{inner}"


@pytest.mark.skipif(not IS_ROOT, reason="only root can try what other users may do")
def test_a_user_that_is_not_there_is_nothing_to_try(short_path: Path) -> None:
    assert service(User="nobody-of-this-name").barrier([short_path]) == ""
