"""Features [2, 1]: the peak and the duration in milliseconds of each recording at 16 kHz."""

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        return [self._answer(request) for request in requests]

    def _answer(self, request):
        signal = pb_utils.get_input_tensor_by_name(request, "AUDIO_SIGNAL").as_numpy()
        counts = pb_utils.get_input_tensor_by_name(request, "SAMPLE_COUNT").as_numpy()[:, 0]
        valid = np.arange(signal.shape[1]) < counts[:, None]
        peak = np.abs(np.where(valid, signal, 0)).max(axis=1)
        features = np.stack([peak, counts / 16], axis=1)[:, :, None].astype(np.float32)
        return pb_utils.InferenceResponse(
            [
                pb_utils.Tensor("AUDIO_FEATURES", features),
                pb_utils.Tensor("AUDIO_FEATURES_LENGTH", np.ones((len(counts), 1), np.int64)),
            ]
        )
