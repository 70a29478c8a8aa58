"""The gate: conversations out of order, empty answers, broken tool calls, repeated rows, leaks, the held-out share."""

import unicodedata
from collections.abc import Callable, Iterator

from fulltune.base.files import fingerprint
from fulltune.base.records import IGNORE
from fulltune.data.example import Chat, Content, Labelled, Message, Preference, RowFault, Text, Tokens


def check(content: Content) -> None:
    """RowFault if the content cannot be taught as it stands."""
    match content:
        case Text():
            _check_text(content.text)
            if content.taught == ():
                raise RowFault("no_answer", "no segment is labelled true, so nothing to learn", "label the answer")
        case Labelled():
            _check_text(content.text)
            if content.pair is not None:
                _check_text(content.pair)
        case Tokens():
            if all(label == IGNORE for label in content.labels[1:]):
                raise RowFault("no_trained_tokens", "no label behind the first id is taught", "leave the row out")
        case Preference():
            _check_preference(content)
        case Chat():
            _check_chat(content)


def _check_text(text: str) -> None:
    if _is_empty(text):
        raise RowFault("empty_text", "the text is empty", "leave the row out")


def _check_chat(chat: Chat) -> None:
    _check_order(chat.messages)
    _check_answers(chat.messages)
    _check_tools(chat)


def _check_preference(content: Preference) -> None:
    """Both answers must fit behind the prompt, and differ."""
    if not content.prompt.messages:
        raise RowFault("empty_conversation", "the prompt has no turns", "write the question")
    if content.chosen == content.rejected:
        raise RowFault("preference", "chosen and rejected are the same", "leave the row out")
    for answer in (content.chosen, content.rejected):
        _check_chat(Chat((*content.prompt.messages, *answer), content.prompt.tools))


def content_id(content: Content) -> str:
    """The hash of what is taught, the same on every machine; two rows with one id are exact duplicates."""
    return fingerprint(_plain(content, lambda text: text))


def loose_id(content: Content) -> str:
    """As `content_id`, but blind to case and spacing: it decides the held-out share and finds leaks."""
    return fingerprint(_plain(content, lambda text: " ".join(text.casefold().split())))


def _plain(content: Content, fold: Callable[[str], str]) -> object:
    match content:
        case Text():
            return ["text", fold(content.text), *([] if content.taught is None else [content.taught])]
        case Labelled():
            return ["labelled", fold(content.text), fold(content.pair or ""), content.labels]
        case Tokens():
            return ["tokens", content.ids, content.labels]
        case Preference():
            answers = [_turns(answer, fold) for answer in (content.chosen, content.rejected)]
            return ["preference", _plain(content.prompt, fold), answers]
        case Chat():
            return ["chat", _turns(content.messages, fold), list(content.tools)]


def _turns(messages: tuple[Message, ...], fold: Callable[[str], str]) -> list[object]:
    return [[m.role, fold(m.content), m.weight, dict(m.extra)] for m in messages]


def _is_empty(text: str) -> bool:
    """White space and characters without width (such as U+200B) only."""
    return all(char.isspace() or unicodedata.category(char) in ("Cf", "Cc") for char in text)


def _check_order(messages: tuple[Message, ...]) -> None:
    if not messages:
        raise RowFault("empty_conversation", "the conversation has no turns", "leave the row out")
    roles = [message.role for message in messages]
    if "assistant" not in roles:
        raise RowFault("no_answer", "there is no assistant turn, so nothing to learn", "add the answer")
    for problem in _order_problems(messages):
        raise RowFault("role_order", problem, "system first if at all, then user and assistant in turn, assistant last")


def _order_problems(messages: tuple[Message, ...]) -> Iterator[str]:
    turns = messages[1:] if messages[0].role == "system" else messages
    before = "start"
    for number, message in enumerate(turns, 1 + len(messages) - len(turns)):
        match message.role:
            case "system":
                yield f"turn {number} is a system message in the middle"
            case "user" if before not in ("start", "assistant"):
                again = " again" if before == "user" else ""
                yield f"turn {number} is user{again}, directly after {before}"
            case "assistant" if before == "start":
                yield "the conversation starts with the assistant"
            case "assistant" if before == "assistant":
                yield f"turn {number} is assistant again"
            case "tool" if before not in ("calls", "tool"):
                yield f"turn {number} is a tool's answer, but no call stands before it"
        before = "calls" if "tool_calls" in message.extra else message.role
    if before != "assistant" and before != "calls":
        yield f"the conversation ends with {before}: nothing to learn from its last turn"


def _check_answers(messages: tuple[Message, ...]) -> None:
    for number, message in enumerate(messages, 1):
        taught = message.role == "assistant" and message.weight > 0
        if taught and "tool_calls" not in message.extra and _is_empty(message.content):
            raise RowFault("empty_answer", f"the answer in turn {number} is empty", "write it, or leave the row out")
    if not any(message.role == "assistant" and message.weight > 0 for message in messages):
        raise RowFault("no_answer", "every assistant turn has weight 0", "leave the row out")


def _check_tools(chat: Chat) -> None:
    known = {tool.get("function", tool).get("name") for tool in chat.tools}
    asked: set[str] = set()
    for number, message in enumerate(chat.messages, 1):
        for call in message.extra.get("tool_calls", ()):
            name = call["function"]["name"]
            if not known:
                raise RowFault("tool_call", f"turn {number} calls {name!r}, but the row has no `tools`", "add `tools`")
            if name not in known:
                mend = f"known tools: {', '.join(sorted(map(str, known)))}"
                raise RowFault("tool_call", f"turn {number} calls {name!r}, which is not in `tools`", mend)
            asked.add(str(call.get("id")))
        answered = message.extra.get("tool_call_id")
        if message.role == "tool" and answered is not None and answered not in asked:
            what = f"turn {number} answers the call {answered!r}, which nobody made"
            raise RowFault("tool_call", what, "let `tool_call_id` be the id of a call before it")
