"""Write the small ONNX files of this folder, which README.md describes. This needs onnx and NumPy."""

import pathlib

import numpy as np
import onnx

HEADER = '<ir_version: 8, opset_import: ["" : {opset}]>'
TAGS, TOKENS, EMBEDDING, TAGGER_HIDDEN = 5, 40, 12, 16
BANDS, DENOISER_HIDDEN = 22, 32
DETECTOR_HIDDEN = 24


def weights(rng, **shapes):
    """Return float32 tensors by name, uniform within 1/sqrt of their last dimension."""
    return {
        name: rng.uniform(-1, 1, shape).astype(np.float32) / np.float32(shape[-1] ** 0.5)
        for name, shape in shapes.items()
    }


def recurrent(rng, prefix, gates, inputs, hidden, directions=1):
    """Return the weights W, R and B of a recurrent node."""
    return weights(
        rng,
        **{
            f"{prefix}_W": (directions, gates * hidden, inputs),
            f"{prefix}_R": (directions, gates * hidden, hidden),
            f"{prefix}_B": (directions, 2 * gates * hidden),
        },
    )


def name_nodes(graph):
    """Name each node after its first output."""
    for node in graph.node:
        node.name = node.output[0]
        for attribute in node.attribute:
            name_nodes(attribute.g)


def model(text, initializers, opset=17):
    """Return a checked model of a graph in ONNX's textual form."""
    parsed = onnx.parser.parse_model(HEADER.format(opset=opset) + text)
    name_nodes(parsed.graph)
    parsed.graph.initializer.extend(
        onnx.numpy_helper.from_array(np.asarray(array), name) for name, array in initializers.items()
    )
    onnx.checker.check_model(parsed, full_check=True)
    return parsed


def tagger(rng):
    """Return a model that tags tokens, by a bidirectional LSTM with lengths."""
    initializers = recurrent(rng, "lstm", 4, EMBEDDING, TAGGER_HIDDEN, directions=2)
    initializers |= weights(rng, embedding=(TOKENS, EMBEDDING), dense=(2 * TAGGER_HIDDEN, TAGS), bias=(TAGS,))
    return model(
        f"""
        tagger (int64[batch, time] tokens, int32[batch] lengths) => (float[batch, time, {TAGS}] tags) {{
            embedded = Gather(embedding, tokens)
            x = Transpose<perm = [1, 0, 2]>(embedded)
            y = LSTM<direction = "bidirectional", hidden_size = {TAGGER_HIDDEN}>(x, lstm_W, lstm_R, lstm_B, lengths)
            batch_first = Transpose<perm = [2, 0, 1, 3]>(y)
            merged = Reshape(batch_first, joined)
            product = MatMul(merged, dense)
            scores = Add(product, bias)
            tags = Softmax<axis = -1>(scores)
        }}""",
        initializers | {"joined": np.array([0, 0, 2 * TAGGER_HIDDEN], np.int64)},
    )


def denoiser(rng):
    """Return a model of one frame of a stream: a GRU whose state goes in and comes out."""
    initializers = recurrent(rng, "gru", 3, BANDS, DENOISER_HIDDEN)
    initializers |= weights(rng, dense=(BANDS, DENOISER_HIDDEN), bias=(BANDS,))
    return model(
        f"""
        denoiser (float[batch, {BANDS}] bands, float[1, batch, {DENOISER_HIDDEN}] state)
              => (float[batch, {BANDS}] gains, float[1, batch, {DENOISER_HIDDEN}] new_state) {{
            x = Unsqueeze(bands, first)
            y, new_state = GRU<hidden_size = {DENOISER_HIDDEN}, linear_before_reset = 1>(
                x, gru_W, gru_R, gru_B, , state)
            h = Squeeze(new_state, first)
            scores = Gemm<transB = 1>(h, dense, bias)
            gains = Sigmoid(scores)
        }}""",
        initializers | {"first": np.array([0], np.int64)},
    )


def detector(rng):
    """Return a model that chooses a branch by the sampling rate, behind which an LSTM reads the frames."""
    initializers = recurrent(rng, "lstm", 4, 16, DETECTOR_HIDDEN)
    initializers |= weights(rng, filters_16k=(16, 1, 64), filters_8k=(16, 1, 32), dense=(DETECTOR_HIDDEN, 1))
    return model(
        f"""
        detector (float[batch, samples] audio, int64 rate) => (float[batch, 1] probability) {{
            channel = Unsqueeze(audio, second)
            high = Equal(rate, rate_16k)
            filtered = If(high) <
                then_branch = at_16k () => (float[batch, 16, frames] a) {{
                    a = Conv<strides = [32]>(channel, filters_16k)
                }},
                else_branch = at_8k () => (float[batch, 16, frames] b) {{
                    b = Conv<strides = [16]>(channel, filters_8k)
                }}
            >
            rectified = Relu(filtered)
            x = Transpose<perm = [2, 0, 1]>(rectified)
            y, last = LSTM<hidden_size = {DETECTOR_HIDDEN}>(x, lstm_W, lstm_R, lstm_B)
            h = Squeeze(last, first)
            score = MatMul(h, dense)
            probability = Sigmoid(score)
        }}""",
        initializers
        | {"first": np.array([0], np.int64), "second": np.array([1], np.int64), "rate_16k": np.array(16000, np.int64)},
    )


def refused(rng):
    """Return a model that is valid ONNX but has two things that rnnfast does not compute."""
    initializers = recurrent(rng, "rnn", 1, 4, 3)
    return model(
        """
        refused (float[time, batch, 4] x, uint8[bytes] file)
             => (float[time, 1, batch, 3] y, uint8[height, width, 3] image) {
            y = RNN<hidden_size = 3, activations = ["Swish"]>(x, rnn_W, rnn_R, rnn_B)
            image = ImageDecoder(file)
        }""",
        initializers,
        opset=20,
    )


def main():
    """Write every model, each with a seed of its own."""
    folder = pathlib.Path(__file__).parent
    for seed, make in enumerate((tagger, denoiser, detector, refused)):
        onnx.save(make(np.random.default_rng(seed)), folder / f"{make.__name__}.onnx")


if __name__ == "__main__":
    main()
