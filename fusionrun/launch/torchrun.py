"""torchrun as launch.sh starts it: quiet, and open to nobody who isn't told of it.

Without its warnings, without its traceback when it was told to stop or another node's torchrun has
gone, and with its own store on the address alone that it was given.
"""

import logging
import signal
import sys
from types import FrameType
from typing import Any

from torch.distributed import TCPStore
from torch.distributed.elastic.multiprocessing import api
from torch.distributed.elastic.rendezvous import RendezvousError, c10d_rendezvous_backend
from torch.distributed.run import get_args_parser, main

from fusionrun.common.distributed import LaunchError, listen_at

HANDLED = (
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
)


def make_store(host: str, port: int, *, is_master: bool, **options: Any) -> TCPStore:
    """torchrun's store, which would listen on every interface."""
    listener = listen_at(host, port) if is_master else None
    return TCPStore(host, port, is_master=is_master, master_listen_fd=listener, **options)


def stop_once(number: int, frame: FrameType | None) -> None:
    """torchrun's handler of signals, of which the first alone counts.

    Slurm tells every process of a step, and launch.sh passes it on: an exception in the middle of
    what the first one began would leave ranks alone, or torchrun hanging.
    """
    ignore_signals()
    found = signal.Signals(number)
    raise api.SignalException(f"got signal {found.name}", sigval=found)


def ignore_signals() -> None:
    """Whatever says to stop has been heard."""
    for number in HANDLED:
        signal.signal(number, signal.SIG_IGN)


if __name__ == "__main__":
    logging.getLogger("torch.distributed.elastic").setLevel(logging.ERROR)
    # of one that waited for another node's in vain; launch.sh says how the launch ended
    logging.getLogger("torch.distributed.elastic.agent.server.api").setLevel(logging.CRITICAL)
    logging.raiseExceptions = False  # a signal may come while a line is logged
    vars(c10d_rendezvous_backend)["TCPStore"] = make_store  # it has no option for it
    vars(api)["_terminate_process_handler"] = stop_once
    options = [f"--signals-to-handle={','.join(each.name for each in HANDLED)}", *sys.argv[1:]]
    if "--shutdown-timeout" in get_args_parser().format_help():  # torch 2.11 does not know it yet
        options = ["--shutdown-timeout=25", *options]
    try:
        main(options)
    except api.SignalException:
        sys.exit(1)
    except LaunchError as error:
        sys.exit(f"launch.sh: {error}")
    except RendezvousError as error:
        sys.exit(f"launch.sh: the torchruns of the nodes have lost each other ({error!r})")
    finally:
        ignore_signals()
