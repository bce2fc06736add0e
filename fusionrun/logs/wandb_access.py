"""Whether Weights & Biases can be used: asked in seconds, before hours are spent.

Nothing here reads the keyboard: W&B itself asks for a missing key, in the middle of a run.
"""

import base64
import configparser
import contextlib
import importlib
import json
import netrc
import os
import threading
import urllib.error
import urllib.request
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

WandbMode = Literal["off", "offline", "online"]
SERVER = "https://api.wandb.ai"
NETWORK_SECONDS = 6.0  # for an answer; names are looked up within it, too


def effective_mode(wanted: WandbMode) -> WandbMode:
    """The recipe's, or less where W&B's own variable says so, as on nodes without a network."""
    asked = os.environ.get("WANDB_MODE", "")
    if wanted != "off" and asked == "disabled":
        return "off"
    return "offline" if wanted == "online" and asked in ("offline", "dryrun") else wanted


def package_problem() -> tuple[str, str] | None:
    """(what is wrong with the wandb package, what to do); None where it can be used."""
    advice = "run `pip install wandb`, or set logs.wandb=off"
    try:
        package = importlib.import_module("wandb")
    except ModuleNotFoundError as error:
        if error.name == "wandb":
            return "the package wandb isn't installed", advice
        return f"the package wandb can't be imported ({error})", advice
    except Exception as error:  # whatever a broken installation does
        return f"the package wandb can't be imported ({type(error).__name__}: {error})", advice
    if not hasattr(package, "init"):  # a folder of that name is imported as an empty package
        place = next(iter(getattr(package, "__path__", [])), "a module")
        return f"the package wandb isn't installed; {place} was found in its place", advice
    return None


def access_problem() -> tuple[str, str] | None:
    """(why no run can be uploaded, what to do); None where a key is there and accepted."""
    offline = "or set logs.wandb=offline and run `wandb sync` later"
    server = _server()
    key = os.environ.get("WANDB_API_KEY", "").strip() or _key_in_netrc(server)
    if not key and not os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        found = f"no W&B key for {server}, neither in WANDB_API_KEY nor in ~/.netrc"
        return found, f"run `wandb login` once, {offline}"
    answers: list[tuple[str, str] | None] = []

    def ask() -> None:
        try:
            answers.append(_refusal(server, key))
        except (OSError, ValueError) as error:  # urllib's are OSErrors
            reason = getattr(error, "reason", error)
            found = f"{server} can't be reached ({reason})"
            answers.append((found, f"check the network and HTTPS_PROXY, {offline}"))

    thread = threading.Thread(target=ask, daemon=True)  # a name server may take minutes to fail
    thread.start()
    thread.join(NETWORK_SECONDS)
    if not answers:
        found = f"{server} can't be reached (no answer within {NETWORK_SECONDS:.0f} s)"
        return found, f"check the network and HTTPS_PROXY, {offline}"
    return answers[0]


def _server() -> str:
    """As W&B chooses it: the variable, then its settings file."""
    if named := os.environ.get("WANDB_BASE_URL"):
        return named.rstrip("/")
    default = Path("~/.config/wandb").expanduser()
    settings = Path(os.environ.get("WANDB_CONFIG_DIR", default)) / "settings"
    parser = configparser.ConfigParser(interpolation=None)
    with contextlib.suppress(configparser.Error, OSError, UnicodeDecodeError):
        parser.read(settings)
    return parser.get("default", "base_url", fallback=SERVER).rstrip("/")


def _key_in_netrc(server: str) -> str:
    host = urlsplit(server).hostname or ""
    named = os.environ.get("NETRC")
    for path in [named] if named else ["~/.netrc", "~/_netrc"]:
        with contextlib.suppress(OSError, netrc.NetrcParseError, UnicodeDecodeError):
            found = netrc.netrc(str(Path(path).expanduser())).authenticators(host)
            return (found[2] or "") if found else ""
    return ""


def _refusal(server: str, key: str) -> tuple[str, str] | None:
    """What the server says against the key. Raises OSError where there is no answer."""
    body = json.dumps({"query": "query Viewer { viewer { id } }"}).encode()
    headers = {"Content-Type": "application/json", "User-Agent": "fusionrun"}
    if key:
        headers["Authorization"] = f"Basic {base64.b64encode(f'api:{key}'.encode()).decode()}"
    request = urllib.request.Request(f"{server}/graphql", body, headers)
    try:
        with urllib.request.urlopen(request, timeout=NETWORK_SECONDS) as answer:
            told = json.loads(answer.read(1 << 20))
    except urllib.error.HTTPError as error:
        if error.code == 407 or error.code >= 500:  # a proxy's, or nobody's
            raise
        refused = error.code in (401, 403)
    except ValueError:  # some answer of a server of another version
        return None
    else:
        viewer = told.get("data") if isinstance(told, dict) else None
        refused = bool(key) and isinstance(viewer, dict) and viewer.get("viewer", 0) is None
    if refused:
        return f"{server} refuses the W&B key", "run `wandb login --relogin`, or set logs.wandb=off"
    return None
