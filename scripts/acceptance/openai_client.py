"""The official client of OpenAI against `lapidary serve`: embeddings as it asks for them by default (base64), chat, stream,
log-probabilities, errors.

usage: openai_client.py [LAPIDARY] [SERVE FLAG]...

LAPIDARY (target/release/lapidary) is started on a port of its own with the model that comes with it. The client is installed
into a virtual environment in target/acceptance/openai.
"""
import math, sys

from common import check, in_place, started


def main():
    in_place("openai", "openai")
    import openai

    with started(sys.argv[1:], "--api-key", "secret") as server:
        talk(openai, openai.OpenAI(base_url=f"{server.address}/v1", api_key="secret"), server.address)


def talk(openai, client, address):
    model = client.models.list().data[0].id
    texts = ["A man plays a guitar.", "Someone makes music.", "It rains."]
    plain = client.embeddings.create(model=model, input=texts, encoding_format="float").data
    packed = client.embeddings.create(model=model, input=texts).data
    check("base64 (the default) and float agree", all(
        math.isclose(x, y, abs_tol=1e-5) for a, b in zip(plain, packed) for x, y in zip(a.embedding, b.embedding)
    ))
    cosine = lambda i, j: sum(x * y for x, y in zip(plain[i].embedding, plain[j].embedding))
    check("unit vectors", all(math.isclose(cosine(i, i), 1, abs_tol=1e-5) for i in range(3)))
    check("music is nearer to a guitar than rain is", cosine(0, 1) > cosine(0, 2))

    said = dict(model=model, messages=[{"role": "user", "content": "What is the capital of France?"}], temperature=0)
    whole = client.chat.completions.create(**said, max_tokens=24, logprobs=True, top_logprobs=3)
    text = whole.choices[0].message.content
    print("       ", text)
    check("a reply", "Paris" in text and whole.usage.completion_tokens > 0)
    check("log-probabilities", all(one.logprob == one.top_logprobs[0].logprob for one in whole.choices[0].logprobs.content))
    stream = client.chat.completions.create(**said, max_tokens=24, stream=True, stream_options={"include_usage": True})
    chunks = list(stream)
    pieces = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    check("the stream says the same", pieces == text and chunks[-1].usage.total_tokens == whole.usage.total_tokens)
    plain = client.completions.create(model=model, prompt="The capital of France is", max_tokens=8, temperature=0)
    check("a continuation", len(plain.choices[0].text) > 0)

    def refused(kind, call):
        try:
            call()
        except kind as error:
            return error.status_code
        return None

    check("another model is 404", refused(openai.NotFoundError, lambda: client.embeddings.create(model="other", input="a")))
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
    check("tools are 400", refused(openai.BadRequestError, lambda: client.chat.completions.create(**said, tools=[tool])))
    stranger = openai.OpenAI(base_url=f"{address}/v1", api_key="wrong")
    call = lambda: stranger.embeddings.create(model=model, input="a")
    check("a wrong key is 401", refused(openai.AuthenticationError, call))


main()
