"""The label by which an OpenRecon host learns what a container does."""

import json
from importlib import metadata
from typing import Any

LABEL = "com.siemens-healthineers.magneticresonance.openrecon.metadata:1.1.0"
MEMORY_MIB = 2048


def openrecon_label(model: str, port: int) -> str:
    """The JSON of the label `LABEL`; a container carries it in base64."""
    try:
        version = metadata.version("poan")
    except metadata.PackageNotFoundError:
        version = "0"
    return json.dumps(_document(model, port, version), indent=1)


def _document(model: str, port: int, version: str) -> dict[str, Any]:
    about = "In-plane super-resolution by a neural network. Research only, not for diagnosis."
    return {
        "general": {
            "name": {"en": f"POAN super-resolution ({model})"},
            "version": version,
            "vendor": "poan",
            "information": {"en": about},
            "id": "poan",
            "regulatory_information": {
                "device_trade_name": "poan",
                "production_identifier": version,
                "manufacturer_address": "",
                "made_in": "",
                "manufacture_date": "",
                "material_number": "",
                "gtin": "",
                "udi": "",
                "safety_advices": "Not a medical device.",
                "special_operating_instructions": "Research only.",
                "additional_relevant_information": "",
            },
        },
        "reconstruction": {
            "transfer_protocol": {"protocol": "ISMRMRD", "version": "1.4.1"},
            "port": port,
            "emitter": "image",
            "injector": "image",
            "can_process_adjustment_data": False,
            "can_use_gpu": False,
            "min_count_required_gpus": 0,
            "min_required_gpu_memory": 0,
            "min_required_memory": MEMORY_MIB,
            "min_count_required_cpu_cores": 1,
            "content_qualification_type": "RESEARCH",
        },
        "parameters": [],
    }
