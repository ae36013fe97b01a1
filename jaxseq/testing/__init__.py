"""The contract of cores and decoders as functions that raise ``ContractError``; they need no pytest.

check_core(MyCore)                  # all laws, in float64
check_core(MyCore, quick=True)      # the main laws in a few seconds, in float32
check_core_on_devices(MyCore)       # the same on two devices, in three ways
check_decoder(make_decoder)
"""

from jaxseq.testing.contract import check_core, check_core_on_devices, check_decoder
from jaxseq.testing.laws import ContractError

__all__ = ["ContractError", "check_core", "check_core_on_devices", "check_decoder"]
