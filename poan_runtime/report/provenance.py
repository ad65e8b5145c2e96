"""What a derived image says of the model and settings that made it."""

from poan_runtime.as_measured import decided
from poan_runtime.extras import poan_version
from poan_runtime.images.dicom.provenance import Provenance
from poan_runtime.network import Network, Settings


def provenance_of(network: Network, settings: Settings) -> Provenance:
    """The program, the model, and all else that decides the voxels."""
    model, opened = network.model, network.opened
    decides = decided(model.manifest, settings) | {
        "backend": opened.name,
        "precision": opened.precision or model.file.precision,
    }
    return Provenance(
        version=poan_version(),
        model=model.manifest.name,
        model_sha256=model.file.sha256,
        scale=model.manifest.scale,
        settings=repr(sorted(decides.items())),
    )
