"""LocalVlm: batches, failures that stay alone, loading, pickling, threads."""

import math
import pickle

import pytest
import torch

from cac_align.core.video import Frames
from cac_align.vlm.local import LocalVlm
from cac_align.vlm.protocol import Message, Readout, Vlm
from tests.support import tiny_qwen
from tests.support.tiny_qwen import WORDS, after_status, ask, conversations, frames


@pytest.fixture(scope="module")
def small():
    return LocalVlm(tiny_qwen.model(), tiny_qwen.processor(), name="small", batch_size=4)


def test_batches_agree_with_one_by_one_and_failures_stay_alone(small):
    bad = ask("fine <|video_pad|> not")
    good = [(*c, Message("assistant", '{"status": "')) for c in conversations()]
    together = small.answer([good[0], bad, *good[1:], (), (Message("system", "x"),)], max_new_tokens=6, readout=WORDS)
    assert (
        "control token '<|video_pad|>' at character 5" in together[1].error
        and together[1].text == ""
        and together[1].log_p is None
    )
    assert "at least one message" in together[-2].error and "user message" in together[-1].error
    for conversation, reply in zip(good, [together[0], *together[2:-2]], strict=True):
        (alone,) = small.answer([conversation], max_new_tokens=6, readout=WORDS)
        assert alone.text == reply.text
        assert all(math.isclose(alone.log_p[word], reply.log_p[word], abs_tol=1e-4) for word in WORDS.words)
    assert isinstance(small, Vlm) and small.answer([], max_new_tokens=3) == []


def test_frames_that_turn_out_broken_fail_their_own_conversation(small):
    class Broken:
        shape, jpegs = (2, 64, 64, 3), None

        def decode(self):
            raise ValueError("clip: frame 1 is not a readable JPEG or PNG")

    broken = Frames.undecoded(Broken(), (0, 1), (0.0, 0.25), 4.0, 2)
    replies = small.answer([ask("look", frames()), ask("look", broken)], max_new_tokens=2)
    assert replies[0].error is None and "clip: frame 1 is not a readable JPEG" in replies[1].error


def test_nan_and_out_of_memory_touch_only_what_they_must(caplog):
    net, processor = tiny_qwen.model(), tiny_qwen.processor()
    poison = processor.tokenizer("Ж").input_ids[0]
    with torch.no_grad():
        net.get_input_embeddings().weight[poison] = math.nan
    vlm = LocalVlm(net, processor, name="x", batch_size=4)
    replies = vlm.answer([ask("look"), ask("Ж"), ask("see")], max_new_tokens=2)
    assert [reply.error is None for reply in replies] == [True, False, True] and "NaN or infinite" in replies[1].error

    def too_large(module, args, kwargs):
        if kwargs["inputs_embeds"].shape[0] > 1:
            raise torch.OutOfMemoryError("tried to allocate 9 GiB")

    expected = [reply.text for reply in replies]
    net.model.language_model.register_forward_pre_hook(too_large, with_kwargs=True)
    again = vlm.answer([ask("look"), ask("Ж"), ask("see")], max_new_tokens=2)
    assert [reply.text for reply in again] == expected and "going on with at most 2" in caplog.text


def test_a_model_failure_is_the_replys_error():
    net = tiny_qwen.model()

    def broken(module, args, kwargs):
        raise RuntimeError("device-side assert")

    net.model.language_model.register_forward_pre_hook(broken, with_kwargs=True)
    (reply,) = LocalVlm(net, tiny_qwen.processor(), name="x").answer([ask("look")], max_new_tokens=2)
    assert reply.error == "the model failed: device-side assert" and reply.text == ""


def test_wrong_calls_are_refused(small):
    with pytest.raises(ValueError, match="max_new_tokens"):
        small.answer([ask()], max_new_tokens=-1)
    with pytest.raises(ValueError, match="no empty"):
        small.answer([ask()], max_new_tokens=1, readout=Readout(("normal", ""), after_status))
    with pytest.raises(ValueError, match="batch_size"):
        LocalVlm(small.model, small.processor, name="x", batch_size=0)
    with pytest.raises(TypeError, match=r"LocalVlm\.load"):
        pickle.dumps(small)


def test_readout_without_writing_and_where_there_is_no_place(small):
    begun = ask("a", frames(3), Message("assistant", '{"status": "'))
    silent, spoken = (small.answer([begun], max_new_tokens=n, readout=WORDS)[0] for n in (0, 4))
    assert silent.text == "" and silent.num_tokens == 0
    assert all(math.isclose(silent.log_p[word], spoken.log_p[word], abs_tol=1e-5) for word in WORDS.words)
    assert small.answer([ask("a")], max_new_tokens=3, readout=WORDS)[0].log_p is None
    past = ask(
        "a", None, Message("assistant", '{"status": "normal", ')
    )  # the place lies in the begun text: not the model's choice
    assert small.answer([past], max_new_tokens=3, readout=WORDS)[0].log_p is None


def test_saved_loaded_pickled_and_wrapped_it_says_the_same(tmp_path):
    net, processor = tiny_qwen.model(seed=7), tiny_qwen.processor()
    net.save_pretrained(tmp_path / "judge")
    processor.save_pretrained(tmp_path / "judge")
    here = LocalVlm(net, processor, name="x")
    loaded = LocalVlm.load(tmp_path / "judge", batch_size=2)
    copy = pickle.loads(pickle.dumps(loaded))
    asked = [(*c, Message("assistant", '{"status": "')) for c in conversations()]
    expected = here.answer(asked, max_new_tokens=5, readout=WORDS)
    for vlm in (loaded, copy):
        found = vlm.answer(asked, max_new_tokens=5, readout=WORDS)
        assert [reply.text for reply in found] == [reply.text for reply in expected]
        assert all(
            math.isclose(a.log_p["normal"], b.log_p["normal"], abs_tol=1e-4)
            for a, b in zip(found, expected, strict=True)
        )
    assert (
        copy.provenance == loaded.provenance
        and loaded.provenance["model"] == "judge"
        and loaded.provenance["dtype"] == "float32"
    )
    assert all(isinstance(value, str) for value in loaded.provenance.values())

    from peft import LoraConfig, get_peft_model

    wrapped = LocalVlm(get_peft_model(net, LoraConfig(r=2, target_modules=["q_proj"])), processor, name="lora")
    assert [reply.text for reply in wrapped.answer(asked, max_new_tokens=5)] == [reply.text for reply in expected]


def test_load_refuses_another_architecture(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "qwen2", "hidden_size": 8}')
    with pytest.raises(ValueError, match="expected a Qwen3-VL checkpoint"):
        LocalVlm.load(tmp_path)


def test_load_refuses_a_folder_that_lacks_weights_or_everything(tmp_path):
    from safetensors.torch import load_file, save_file

    net, processor = tiny_qwen.model(), tiny_qwen.processor()
    net.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights.pop("lm_head.weight")
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"1 weights are missing .* lm_head"):
        LocalVlm.load(tmp_path)
    with pytest.raises(
        ValueError, match="nothing-here: no such folder; expected the folder of a Qwen3-VL, or a hub id"
    ):
        LocalVlm.load(tmp_path / "nothing-here")
    with pytest.raises(ValueError, match="minature: no such folder"):  # a slip of the pen is not asked of the hub
        LocalVlm.load("minature")


def test_a_prompt_beyond_the_models_length_is_refused_and_a_long_answer_stops_there():
    net, processor = tiny_qwen.model(), tiny_qwen.processor()
    net.config.text_config.max_position_embeddings = 30
    vlm = LocalVlm(net, processor, name="x")
    long, short = vlm.answer([ask("x " * 80), ask("x")], max_new_tokens=400)
    assert "takes at most 30" in long.error and "fewer" in long.error
    assert short.error is None and short.truncated and short.num_tokens == 30 - short.num_prompt_tokens


def test_two_threads_share_one_model(small):
    from concurrent.futures import ThreadPoolExecutor

    expected = [reply.text for reply in small.answer(conversations(), max_new_tokens=8)]
    with ThreadPoolExecutor(4) as pool:
        for replies in pool.map(lambda _: small.answer(conversations(), max_new_tokens=8), range(4)):
            assert [reply.text for reply in replies] == expected
