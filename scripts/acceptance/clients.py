"""LangChain, LlamaIndex and LiteLLM against `lapidary serve`: chat, stream and embeddings of each are the server's own.

usage: clients.py [LAPIDARY] [SERVE FLAG]...

LAPIDARY (target/release/lapidary) is started on a port of its own with the model that comes with it. The clients are
installed into a virtual environment in target/acceptance/clients. LangChain's default, which sends the ids of another
tokenizer (tiktoken's), is checked to be refused: those of it that this model's vocabulary lacks are 400, in words that help.
"""
import math, os, sys

from common import check, in_place, started

PACKAGES = ["openai", "langchain-openai", "llama-index-llms-openai-like", "llama-index-embeddings-openai-like", "litellm"]
TEXTS = ["A man plays a guitar.", "Someone makes music.", "It rains."]
QUESTION = "What is the capital of France?"
KEY = "secret"


def main():
    in_place("clients", *PACKAGES)
    import openai

    with started(sys.argv[1:], "--api-key", KEY) as server:
        url = f"{server.address}/v1"
        plain = openai.OpenAI(base_url=url, api_key=KEY)
        model = plain.models.list().data[0].id
        data = plain.embeddings.create(model=model, input=TEXTS, encoding_format="float").data
        said = plain.chat.completions.create(
            model=model, messages=[{"role": "user", "content": QUESTION}], temperature=0, max_tokens=24)
        own = ([one.embedding for one in data], said.choices[0].message.content)
        for client in (langchain, llama_index, litellm_client, foreign_ids):
            client(url, model, own)


def same_vectors(found, expected):
    def cosine(a, b):
        return sum(x * y for x, y in zip(a, b)) / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))

    return len(found) == len(expected) and all(cosine(a, b) > 1 - 1e-5 for a, b in zip(found, expected))


def langchain(url, model, own):
    from langchain_openai import ChatOpenAI, OpenAIEmbeddings

    vectors, text = own
    chat = ChatOpenAI(base_url=url, api_key=KEY, model=model, temperature=0, max_tokens=24)
    check("LangChain: a reply", chat.invoke(QUESTION).content == text)
    chunks = list(chat.stream(QUESTION))
    check("LangChain: a stream", len(chunks) > 2 and "".join(chunk.content for chunk in chunks) == text)
    embed = OpenAIEmbeddings(base_url=url, api_key=KEY, model=model, check_embedding_ctx_length=False)
    check("LangChain: texts", same_vectors(embed.embed_documents(TEXTS), vectors))
    check("LangChain: a query", same_vectors([embed.embed_query(TEXTS[0])], vectors[:1]))


def llama_index(url, model, own):
    from llama_index.core.llms import ChatMessage
    from llama_index.embeddings.openai_like import OpenAILikeEmbedding
    from llama_index.llms.openai_like import OpenAILike

    vectors, text = own
    chat = OpenAILike(
        api_base=url, api_key=KEY, model=model, temperature=0, max_tokens=24, is_chat_model=True, context_window=2048)
    messages = [ChatMessage(role="user", content=QUESTION)]
    check("LlamaIndex: a reply", chat.chat(messages).message.content == text)
    pieces = [piece.delta or "" for piece in chat.stream_chat(messages)]
    check("LlamaIndex: a stream", len(pieces) > 2 and "".join(pieces) == text)
    embed = OpenAILikeEmbedding(api_base=url, api_key=KEY, model_name=model)
    check("LlamaIndex: texts", same_vectors(embed.get_text_embedding_batch(TEXTS), vectors))
    check("LlamaIndex: a query", same_vectors([embed.get_query_embedding(TEXTS[0])], vectors[:1]))


def litellm_client(url, model, own):
    import litellm

    vectors, text = own
    to = dict(model=f"openai/{model}", api_base=url, api_key=KEY)
    said = dict(messages=[{"role": "user", "content": QUESTION}], temperature=0, max_tokens=24)
    reply = litellm.completion(**to, **said)
    check("LiteLLM: a reply", reply.choices[0].message.content == text and reply.usage.completion_tokens > 0)
    pieces = [chunk.choices[0].delta.content or "" for chunk in litellm.completion(**to, **said, stream=True)]
    check("LiteLLM: a stream", len(pieces) > 2 and "".join(pieces) == text)
    data = litellm.embedding(**to, input=TEXTS).data
    check("LiteLLM: texts", same_vectors([one["embedding"] for one in data], vectors))


def foreign_ids(url, model, own):
    """What LangChain sends by default."""
    import litellm.litellm_core_utils.default_encoding  # Says where the tiktoken vocabulary is that comes with LiteLLM.
    import openai
    from langchain_openai import OpenAIEmbeddings

    default = OpenAIEmbeddings(base_url=url, api_key=KEY, model=model)
    # "émigrés" has ids in tiktoken's vocabulary of 100,000 that a smaller one lacks.
    try:
        default.embed_documents(["Les émigrés görüşmek здравствуйте"])
        told = ""
    except openai.BadRequestError as error:
        told = str(error)
    print("       ", told)
    check("LangChain: ids of another tokenizer are 400", told != "")
    check("LangChain: the error names check_embedding_ctx_length=False", "check_embedding_ctx_length" in told)
    try:
        found = default.embed_documents(TEXTS)
        print("        ids within the vocabulary are taken; the same vectors:", same_vectors(found, own[0]))
    except openai.BadRequestError as error:
        print("        ids within the vocabulary:", error)


os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
main()
