"""The Hugging Face Hub on loopback: what the tests publish to and download from.

The server speaks the Hub's HTTP protocol as far as `huggingface_hub`, `transformers` and `datasets`
use it without Xet. `repositories.py` keeps commits on the disk, `server.py` answers requests,
`cards.py` checks the metadata of a README.md, `faults.py` lets requests fail on purpose.
"""

from hub.faults import Fault
from hub.repositories import Repository
from hub.server import Hub, Request

__all__ = ["Fault", "Hub", "Repository", "Request"]
