"""KServe v2 over gRPC, through NVIDIA's tritonclient."""

import json
from typing import Any

import numpy as np
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from poan_runtime.engines.kserve.address import Access, Address
from poan_runtime.engines.kserve.transport import (
    Refused,
    Served,
    Tiles,
    Transport,
    Unreachable,
    newest,
)

LATER = ("UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "CANCELLED", "INTERNAL")
"""gRPC's states after which another try may succeed."""


class GrpcTransport(Transport):
    """One host; gRPC shares one connection among all requests."""

    def __init__(self, address: Address, host: tuple[str, int], access: Access) -> None:
        self._told = address.of(host)
        self._model = address.model
        self._version = address.version
        self._timeout = access.timeout_s
        bearer = access.bearer()
        self._headers = None if bearer is None else {"authorization": f"Bearer {bearer}"}
        self._served: Served | None = None
        self._client = triton.InferenceServerClient(
            f"{host[0]}:{host[1]}",
            ssl=address.secure,
            root_certificates=_path(access.ca),
            certificate_chain=_path(access.certificate),
            private_key=_path(access.key),
        )

    def describe(self) -> Served:
        """See `Transport.describe`."""
        version = self._version
        if version is None:
            newest_of = self._ask(self._client.get_model_metadata, self._model)
            version = newest(newest_of.versions, self._told)
        about = self._ask(self._client.get_model_metadata, self._model, version)
        if not self._ask(self._client.is_model_ready, self._model, version):
            raise Unreachable(f"{self._told}: version {version} is not ready")
        config = self._ask(self._client.get_model_config, self._model, version).config
        self._served = Served(
            version=version,
            parameters={key: value.string_value for key, value in config.parameters.items()},
            **_port(about.inputs, "input", self._told),
            **_port(about.outputs, "output", self._told),
        )
        return self._served

    def infer(self, batch: Tiles) -> Tiles:
        """See `Transport.infer`."""
        served = self._served
        assert served is not None, "a model is described before it is asked"
        tensor = triton.InferInput(served.input_name, list(batch.shape), "FP32")
        tensor.set_data_from_numpy(np.ascontiguousarray(batch, np.float32))
        answer = self._ask(
            self._client.infer,
            self._model,
            [tensor],
            served.version,
            outputs=[triton.InferRequestedOutput(served.output_name)],
        )
        return np.array(answer.as_numpy(served.output_name), np.float32)

    def close(self) -> None:
        """See `Transport.close`."""
        self._client.close()

    def _ask(self, what: Any, *arguments: Any, **named: Any) -> Any:
        try:
            return what(*arguments, headers=self._headers, client_timeout=self._timeout, **named)
        except InferenceServerException as error:
            status = str(error.status() or "").removeprefix("StatusCode.")
            told = f"{self._told}: {' '.join(str(error.message()).split())[:200]}"
            raise Unreachable(told) if status in LATER else Refused(told) from None


def _port(ports: Any, kind: str, told: str) -> dict[str, Any]:
    """Name and shape of the only input or output."""
    if len(ports) != 1 or ports[0].datatype != "FP32":
        names = json.dumps([[port.name, port.datatype] for port in ports])
        raise Refused(f"{told}: expected one FP32 {kind}, got {names[:200]}")
    return {f"{kind}_name": ports[0].name, f"{kind}_shape": tuple(ports[0].shape)}


def _path(path: Any) -> str | None:
    return None if path is None else str(path)
