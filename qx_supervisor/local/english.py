"""Translates localqpu's messages, which are Korean, into English.

`{}` stands for what is filled in, in the same order in both languages. An unknown message, of a later version, is
reduced to what is not Korean in it.
"""

# ruff: noqa: E501 - one message, one line
from __future__ import annotations

import functools
import re

_KOREAN = re.compile("[\uac00-\ud7a3]")

_MESSAGES = {
    # requests
    "요청 본문이 JSON이 아닙니다: {}": "The body is not JSON: {}",
    "요청 본문은 JSON 객체여야 합니다.": "The body must be a JSON object.",
    "본문은 {} 형식이어야 합니다.": 'The body must be of the form {{"tags": [string, ...]}}.',
    "localqpu는 아직 {} {}를 흉내 내지 않습니다. 필요하면 이슈로 알려주세요.": "There is no {} {} here.",
    "localqpu 내부 오류({}: {}). 서버 로그를 확인하세요.": "A fault inside the embedded service: {}: {}.",
    "'{}'은(는) 0 이상의 정수여야 합니다: {}": "{!r} must be a whole number of at least 0, not {}.",
    "시각 형식이 틀렸습니다(ISO-8601 필요): {}": "A time must be as in ISO 8601, not {}.",
    "Content-Length 헤더는 0 이상이어야 합니다: {}": "The header Content-Length must be at least 0, not {}.",
    "Content-Length 헤더가 숫자가 아닙니다: {}": "The header Content-Length is not a number: {}",
    # submissions
    "제출 본문의 '{}'은(는) 문자열이어야 합니다(받은 값: {}).": "In a submission {!r} must be a string, not {}.",
    "제출 본문의 'tags'는 문자열 배열이어야 합니다.": "In a submission 'tags' must be a list of strings.",
    "제출 본문의 'session_id'는 문자열이어야 합니다.": "In a submission 'session_id' must be a string.",
    "제출 본문의 'params'는 JSON 객체여야 합니다.": "In a submission 'params' must be a JSON object.",
    "localqpu에 '{}' 백엔드가 없습니다. 사용 가능: {}": "There is no backend {!r}; there are: {}",
    "'{}' 스냅샷에는 보정값(props) 파일이 없습니다.": "The backend {!r} has no properties.",
    "localqpu는 '{}' 프로그램을 지원하지 않습니다(지원: {}).": "There is no program {!r}; there are: {}.",
    "localqpu: 사용량 한도에 도달했습니다(시나리오 usage). 시나리오를 바꾸거나 /_localqpu/reset을 호출하세요.": (
        "This instance has reached its usage limit."
    ),
    "localqpu: 시나리오 auth.reject_tokens=true라 토큰 발급을 거부했습니다.": "Provided API key could not be found.",
    # jobs
    "localqpu에 '{}' 작업이 없습니다. localqpu는 작업을 메모리에만 보관하므로 서버를 재시작하면 이전 작업은 사라집니다.": (
        "Job {} not found."
    ),
    "작업 '{}'는 {} 상태라 결과가 없습니다.": "Job {} is {}, and has no results.",
    "작업 '{}'는 이미 끝나서 취소할 수 없습니다.": "Job {} is in a final state and can't be cancelled.",
    "{} 입력(params)은 JSON 객체여야 합니다.": "The input of the program {} must be a JSON object.",
    "executor 입력을 해석하지 못했습니다({}: {}).": "The input of the program executor can't be understood ({}: {}).",
    "executor 스키마 '{}'는 지원하지 않습니다(지원: {}). localqpu를 업데이트하거나 qiskit-ibm-runtime 버전을 맞추세요.": (
        "The schema {!r} of the program executor is not known, only {}; update localqpu, or take the version of "
        "qiskit-ibm-runtime that it knows."
    ),
    "{} 입력을 해석하지 못했습니다({}: {}). 클라이언트의 qiskit이 localqpu 쪽보다 새로우면 localqpu를 업데이트하세요.": (
        "The input of the program {} can't be understood ({}: {}); if the client's Qiskit is newer, update localqpu."
    ),
    "{} 입력 구조가 올바르지 않습니다({}: {}). params에 pubs 목록({})과 options 객체가 있는지 확인하세요.": (
        "The input of the program {} is malformed ({}: {}); it needs pubs ({}) and options."
    ),
    "회로, 파라미터 값, shots": "circuit, parameter values, shots",
    "회로, 관측량, 파라미터 값, 정밀도": "circuit, observables, parameter values, precision",
    "레지스터에 속하지 않은 고전 비트가 있는 회로는 아직 지원하지 않습니다. 측정 대상은 ClassicalRegister로 만들어 주세요.": (
        "A circuit with classical bits that are in no register is not supported; add them to a ClassicalRegister."
    ),
    # sessions
    "세션 생성 본문은 JSON 객체여야 합니다.": "The body must be a JSON object.",
    "세션 모드 '{}'는 지원하지 않습니다(지원: dedicated, batch).": "There is no mode {!r}, only dedicated and batch.",
    "localqpu에 '{}' 세션이 없습니다. 세션은 메모리에만 보관하므로 서버를 재시작하면 사라집니다.": "Session {} not found.",
    "세션 '{}'는 닫힌 세션이라 작업을 받지 않습니다.": "Session {} is closed, and takes no more jobs.",
    "세션 '{}'는 {} 전용입니다(제출한 백엔드: {}).": "Session {} is on {}, and not on {}.",
    "세션 '{}'이 제출 도중 닫혀 작업을 취소했습니다.": "Session {} was closed meanwhile; the job is cancelled.",
    # backends
    "'{}' 칩 스냅샷을 찾지 못했습니다. 사용 가능: {}": "There is no backend {!r}; there are: {}",
    "백엔드를 하나 이상 지정해야 합니다(예: ibm_brisbane).": "At least one backend must be named, such as ibm_brisbane.",
    # scenarios
    "{}은(는) JSON 객체여야 합니다.": "{} must be a JSON object.",
    "{}에 알 수 없는 키가 있습니다: {} (허용: {})": "{} has unknown keys: {} (allowed: {})",
    "{}은(는) 정수여야 합니다(받은 값: {}).": "{} must be a whole number, not {}.",
    "{}은(는) 유한한 숫자여야 합니다(받은 값: {}).": "{} must be a finite number, not {}.",
    "{}은(는) 유한한 숫자여야 합니다(받은 값이 너무 큽니다).": "{} must be a finite number, and is too large.",
    "{}은(는) 문자열이어야 합니다(받은 값: {}).": "{} must be a string, not {}.",
    "{}({})의 값 형식이 잘못됐습니다: {}": "{} ({}) has a malformed value: {}",
    "queue.delay_seconds와 queue.polls_before_running은 0 이상이어야 합니다.": (
        "queue.delay_seconds and queue.polls_before_running must be at least 0."
    ),
    "failures.rate는 0~1 사이여야 합니다(받은 값: {}).": "failures.rate must be between 0 and 1, not {}.",
    "next_jobs[].outcome '{}'는 허용되지 않습니다(허용: {}).": "next_jobs[].outcome must not be {!r} (allowed: {}).",
    "next_jobs는 배열이어야 합니다.": "next_jobs must be a list.",
    "backends 항목은 status∈{}, queue_length≥0 이어야 합니다.": (
        "An item of backends must have a status of {} and a queue_length of at least 0."
    ),
    "backends에 서버에 없는 백엔드가 있습니다: {} (사용 가능: {})": "backends names some that are not there: {} (there are: {})",
    "usage.limit_seconds와 usage.consumed_seconds는 0 이상이어야 합니다.": (
        "usage.limit_seconds and usage.consumed_seconds must be at least 0."
    ),
    "noise는 true 또는 false여야 합니다.": "noise must be true or false.",
    "auth.reject_tokens는 true 또는 false여야 합니다.": "auth.reject_tokens must be true or false.",
    "http_faults는 배열이어야 합니다.": "http_faults must be a list.",
    "http_faults[{}].times는 1 이상이어야 합니다.": "http_faults[{}].times must be at least 1.",
    "http_faults[].status는 100~599여야 합니다(받은 값: {}).": "http_faults[].status must be 100 to 599, not {}.",
    "http_faults[]의 times·delay_seconds·retry_after는 0 이상이어야 합니다.": (
        "times, delay_seconds and retry_after of http_faults[] must be at least 0."
    ),
    "http_faults[].phase '{}'는 허용되지 않습니다(허용: before, after).": (
        "http_faults[].phase must not be {!r} (allowed: before, after)."
    ),
    "http_faults 항목에 효과가 없습니다. status·drop_connection·delay_seconds 중 하나를 지정하세요.": (
        "An item of http_faults has no effect; give status, drop_connection or delay_seconds."
    ),
    "http_faults[].drop_connection은 true 또는 false여야 합니다.": "http_faults[].drop_connection must be true or false.",
}


def english(text: str) -> str:
    """Translate a message of localqpu's; any other text is returned as it is."""
    if not _KOREAN.search(text):
        return text
    for pattern, translation in _patterns():
        found = pattern.fullmatch(text)
        if found is not None:
            return translation.format(*map(english, found.groups()))
    where, colon, what = text.partition(": ")
    if colon and not _KOREAN.search(where):  # a message within another
        return f"{where}: {english(what)}"
    left = " ".join(part for part in re.split(r"[\uac00-\ud7a3]+", text) if re.search(r"\w", part)).split()
    return f"The embedded service refuses this: {' '.join(left)}" if left else "The embedded service refuses this."


@functools.cache
def _patterns() -> list[tuple[re.Pattern[str], str]]:
    """The messages as patterns, the most specific ones first."""
    ranked = sorted(_MESSAGES.items(), key=lambda each: -len(each[0].replace("{}", "")))
    return [
        (re.compile("(.*?)".join(map(re.escape, korean.split("{}"))), re.DOTALL), found) for korean, found in ranked
    ]
