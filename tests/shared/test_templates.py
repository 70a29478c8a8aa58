"""Every real template with every real tokenizer: what is taught is the assistant's text and its stop token."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AddedToken, PreTrainedTokenizerFast

from fulltune.base.records import IGNORE
from fulltune.data.example import Chat, Example, Message, RowFault
from fulltune.data.render import Encoded, Renderer, TooLong
from fulltune.data.template import Template
from tests.conftest import SHARED

TEMPLATES = sorted((SHARED / "templates").glob("*.jinja")) if SHARED.is_dir() else []
TOKENIZERS = sorted((SHARED / "tokenizers").iterdir()) if SHARED.is_dir() else []

_CONTROL = re.compile(r"<[|｜][^\s<>]+?[|｜]>|</?(?:start|end)_of_turn>|\[\|?/?[A-Z_a-z]+\|?\](?=['\"{ |])|</?s>")
