"""torchrun as launch.sh starts it: quiet, and open to nobody who isn't told of it.

Without its warnings, without its traceback when it was told to stop or another node's torchrun has
gone, and with its own store on the address alone that it was given.
"""

import logging
import sys
from typing import Any

from torch.distributed import TCPStore
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.rendezvous import RendezvousError, c10d_rendezvous_backend
from torch.distributed.run import get_args_parser, main

from fusionrun.common.distributed import LaunchError, listen_at


def make_store(host: str, port: int, *, is_master: bool, **options: Any) -> TCPStore:
    """torchrun's store, which would listen on every interface."""
    listener = listen_at(host, port) if is_master else None
    return TCPStore(host, port, is_master=is_master, master_listen_fd=listener, **options)


if __name__ == "__main__":
    logging.getLogger("torch.distributed.elastic").setLevel(logging.ERROR)
    vars(c10d_rendezvous_backend)["TCPStore"] = make_store  # it has no option for it
    options = sys.argv[1:]
    if "--shutdown-timeout" in get_args_parser().format_help():  # torch 2.11 does not know it yet
        options = ["--shutdown-timeout=25", *options]
    try:
        main(options)
    except SignalException:
        sys.exit(1)
    except LaunchError as error:
        sys.exit(f"launch.sh: {error}")
    except RendezvousError as error:
        sys.exit(f"launch.sh: the torchruns of the nodes have lost each other ({error!r})")
