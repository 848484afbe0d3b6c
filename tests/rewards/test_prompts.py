"""Prompts of rows: by a template, or by the tokenizer's own."""

import pytest

from xgblora.errors import InputError
from xgblora.rewards import prompts_by_chat, prompts_by_template
from xgblora.tasks.files import read_rows

MESSAGE = "<{{ message['role'] }}>{{ message['content'] }}\n"
CHAT = f"{{% for message in messages %}}{MESSAGE}{{% endfor %}}{{% if add_generation_prompt %}}<bot>{{% endif %}}"


@pytest.fixture
def rows(tmp_path):
    path = tmp_path / "sums.jsonl"
    path.write_text('{"question": "1 + 2", "answer": 3}\n{"question": "2 + 2", "answer": 4}\n')
    return read_rows(path)


def test_a_template_names_columns(rows):
    first, second = prompts_by_template(rows, "{question} =")
    assert (first.text, first.row["answer"], first.ids) == ("1 + 2 =", 3, None)
    assert second.text == "2 + 2 ="
    assert second.origin.endswith("sums.jsonl line 2")


def test_a_missing_column_is_one_line(rows):
    with pytest.raises(InputError, match=r"line 1: there is no column questoin; did you mean question\?"):
        prompts_by_template(rows, "{questoin} =")


class TestChat:
    @pytest.fixture
    def tokenizer(self, tiny_tokenizer):
        import copy

        tokenizer = copy.deepcopy(tiny_tokenizer)
        tokenizer.chat_template = CHAT
        return tokenizer

    def test_a_text_is_what_the_user_says(self, rows, tokenizer):
        prompt = prompts_by_chat(rows, tokenizer, "question")[0]
        assert prompt.text == "<user>1 + 2\n<bot>"
        # no second beginning of a text before that of the template
        assert tokenizer.decode(prompt.ids) == prompt.text
        assert prompt.ids[0] != tokenizer.bos_token_id

    def test_messages_are_taken_as_they_are(self, tokenizer):
        messages = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "1 + 2"}]
        prompt = prompts_by_chat([({"messages": messages}, "row 1")], tokenizer)[0]
        assert prompt.text == "<system>Be short.\n<user>1 + 2\n<bot>"

    def test_what_is_missing_is_one_line(self, rows, tokenizer, tiny_tokenizer):
        with pytest.raises(InputError, match="has no chat template; give a prompt template"):
            prompts_by_chat(rows, tiny_tokenizer)
        with pytest.raises(InputError, match="line 1: there is no column prompt"):
            prompts_by_chat(rows, tokenizer)
        tokenizer.chat_template = "{{ raise_exception('no system\nmessage') }}"
        with pytest.raises(InputError, match="line 1: the chat template refuses it: no system message"):
            prompts_by_chat(rows, tokenizer, "question")
