"""Says the peak of each recording; silence has no words, and a duration of 13 ms is refused."""

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        return [self._answer(request) for request in requests]

    def _answer(self, request):
        logprobs = pb_utils.get_input_tensor_by_name(request, "LOGPROBS").as_numpy()
        lengths = pb_utils.get_input_tensor_by_name(request, "LOGPROBS_LENGTH").as_numpy()
        if lengths.shape != (len(logprobs), 1):
            return self._error(f"LOGPROBS_LENGTH has shape {lengths.shape}")
        peaks, durations = logprobs[:, 0, 0], logprobs[:, 0, 1]
        if 13 in durations:
            return self._error("13 ms is refused")
        said = [f"peak {peak:.2f}" if peak else "" for peak in peaks]
        width = max(len(text.split()) for text in said)
        words = np.full((len(said), width), b"", np.object_)
        times = np.full((len(said), width, 2), -1, np.int32)
        for row, (text, duration) in enumerate(zip(said, durations, strict=True)):
            for column, word in enumerate(text.split()):
                words[row, column] = word.encode()
                times[row, column] = column * duration / 2, (column + 1) * duration / 2
        return pb_utils.InferenceResponse(
            [
                pb_utils.Tensor(
                    "FINAL_TRANSCRIPTS", np.array([[text.encode()] for text in said], np.object_)
                ),
                pb_utils.Tensor("FINAL_TRANSCRIPTS_SCORE", peaks[:, None].astype(np.float32)),
                pb_utils.Tensor("FINAL_WORDS", words),
                pb_utils.Tensor("FINAL_WORDS_START_END", times),
                pb_utils.Tensor("FINAL_WORDS_SCORE", np.full(words.shape, 0.5, np.float32)),
            ]
        )

    def _error(self, text):
        return pb_utils.InferenceResponse(error=pb_utils.TritonError(text))
