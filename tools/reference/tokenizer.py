"""A small SentencePiece model with T5's settings, and the tokenizer folders of the published checkpoints around it."""

import io
import random
from pathlib import Path

import sentencepiece
from transformers import T5Tokenizer

from common import write_json

PIECES = 700
EXTRA_IDS = 100
VOCAB_SIZE = 832  # pieces and extra ids, rounded up as T5 does (32000 + 100 -> 32128)
T5_MAX_LENGTH = 512

SUBJECTS = [
    "a small cactus with a happy face", "an old fisherman", "a red fox", "two sleepy cats", "a tiny robot",
    "a pirate ship", "a wooden chair", "the ancient oak tree", "a young woman in a yellow raincoat", "a glass teapot",
    "a naïve painter", "a steaming cup of café au lait", "an astronaut riding a horse", "a flock of geese", "a lighthouse",
    "a dragon made of smoke", "a bowl of fresh fruit", "three hot air balloons", "a vintage motorcycle", "a snow leopard",
    "a jalapeño pepper", "a castle on a cliff", "the little mermaid", "a chef preparing sushi", "an owl wearing glasses",
]
PLACES = [
    "in the Sahara desert", "on a crowded street in Tokyo", "under a starry sky", "at the edge of a frozen lake",
    "inside a cosy library", "near the São Paulo harbour", "on top of a mountain", "in a field of sunflowers",
    "beside a quiet river at dawn", "in outer space", "in a dark forest", "on a beach at sunset", "above the clouds",
    "in front of a white background", "at a Zürich tram stop", "during a thunderstorm", "in the rain", "by candlelight",
]
STYLES = [
    "oil painting", "digital art", "photograph, 35mm, f/1.8", "watercolor sketch", "8k, highly detailed", "pixel art",
    "cinematic lighting", "black & white film", "isometric 3D render", "line drawing", "trending on artstation",
    "art nouveau poster", "low-poly model", "ultra realistic; sharp focus", "concept art", "studio ghibli style",
]
COLOURS = ["red", "green", "blue", "yellow", "purple", "orange", "pink", "brown", "grey", "black", "white", "turquoise"]
SHAPES = ["circle", "square", "triangle", "rectangle", "star", "hexagon", "cube", "sphere", "pyramid", "cylinder", "cross"]
SIZES = ["small", "large", "tiny", "huge", "medium", "thin", "wide"]
RELATIONS = ["above", "below", "to the left of", "to the right of", "inside", "next to", "behind", "in front of"]
NUMBERS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
VERBS = ["looking at", "holding", "walking past", "dreaming about", "painted on", "reflected in", "surrounded by", "jumping over"]
REMARKS = [
    'The sign says "Welcome home!"', "What a wonderful day, isn't it?", "It's 12:30 on July 4, 1996.",
    "Price: $25.99 (10% off)", "Don't panic; breathe...", "He wrote: 'see you at 7pm'", "Temperature: 23°C / 73°F",
    "Scale 1:200 - version 2.0", "Call +44 20 7946 0958", "a+b=c, x<y, #1", "E = mc², obviously",
]
RARE = ["Straße", "smørrebrød", "mañana", "Łódź", "100€"]  # their odd letters fall below the character coverage


NOUNS = """
apple airplane alley angel apartment armchair arrow autumn avenue balloon bamboo banana barn basket bathtub beetle bench bicycle
bird blanket blossom boat book bottle bread bridge broom bucket butterfly cabin cake camel camera candle canoe canyon carpet
carrot cathedral cave cherry chicken chimney church circus clock cloud coat coffee comet compass copper coral corridor cottage
cow crane crown crystal curtain daisy deer desk diamond dinosaur dolphin donkey door dragonfly drawer dress drum duck eagle
elephant engine evening eye face factory fairy feather fence fern festival fire firefly fish flag flame flower forest fountain
frog galaxy garden gate ghost giraffe glacier glove goat gold grape grass guitar hammer hamster harbor hat hedgehog helicopter
hill honey horizon hotel iceberg island ivory jacket jellyfish jewel jungle kettle kingdom kitchen kite knight ladder lamp
lantern lava leaf lemon lion lizard machine magnet mango map market mask meadow melon meteor mirror monkey moon morning mouse
museum mushroom necklace needle nest night notebook ocean octopus onion orchard ostrich palace panda paper parade parrot path
peach peacock pencil penguin piano picture pillow pineapple planet plate pond portrait potato pumpkin puppy queen rabbit railway
rainbow ring river road rocket roof rope rose ruin sailor salmon sand scarf school sculpture shadow shark sheep shell shield
shoe silver skeleton sky snail snake snow soldier spider spoon spring squirrel stair station statue stone strawberry stream
suitcase summer swan sword table temple tent theatre thread throne tiger tower train treasure tulip tunnel turtle umbrella
unicorn valley vase village violin volcano wagon wall wave whale wheel willow window winter wizard wolf wood yacht zebra
""".split()
ADJECTIVES = """
abandoned abstract adorable aerial bright broken calm charming cheerful clear cold colorful crumbling curious delicate detailed
distant dramatic dusty elegant empty enchanted enormous faded fluffy foggy fragile friendly futuristic gentle giant glowing
golden gothic graceful grumpy handmade heavy hidden hollow icy illuminated intricate joyful lonely lush magical majestic
mechanical medieval melting metallic minimalist misty modern mossy mysterious narrow neon noisy ornate overgrown pale peaceful
playful polished portable proud quiet rusty scary shiny silent silky simple sleepy smiling soft spiral stormy striped stylish
sunny surreal tall towering traditional translucent tropical vibrant vivid warm weathered whimsical wild wise young
""".split()


def captions() -> list[str]:
    """The sentences that the model is trained on."""
    pick = random.Random(20231001).choice
    sentences = []
    for _ in range(120):
        sentences.append(f"{pick(SUBJECTS)} {pick(PLACES)}, {pick(STYLES)}")
        sentences.append(f"A {pick(STYLES)} of {pick(SUBJECTS)} {pick(VERBS)} {pick(SUBJECTS)} {pick(PLACES)}.")
        sentences.append(f"a {pick(SIZES)} {pick(COLOURS)} {pick(SHAPES)} {pick(RELATIONS)} a {pick(COLOURS)} {pick(SHAPES)}")
        sentences.append(
            f"{pick(NUMBERS)} {pick(COLOURS)} {pick(SHAPES)}s and {pick(NUMBERS)} {pick(SIZES)} {pick(SHAPES)}s {pick(PLACES)}"
        )
        sentences.append(f"the {pick(ADJECTIVES)} {pick(NOUNS)} {pick(VERBS)} {pick(ADJECTIVES)} {pick(NOUNS)}s {pick(PLACES)}")
        sentences.append(f"A {pick(ADJECTIVES)}, {pick(ADJECTIVES)} {pick(NOUNS)} with a {pick(COLOURS)} {pick(NOUNS)}, {pick(STYLES)}")
        sentences.append(f"{pick(SUBJECTS).capitalize()}. {pick(REMARKS)} {pick(COLOURS).upper()} {pick(SHAPES)}, {pick(STYLES)}!")
    return sentences + NOUNS + ADJECTIVES + SUBJECTS + PLACES + STYLES + REMARKS + RARE


def train_spiece() -> bytes:
    """The SentencePiece model's bytes; the same at every run."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(captions()),
        model_writer=model,
        model_type="unigram",
        vocab_size=PIECES,
        character_coverage=0.9997,
        normalization_rule_name="nmt_nfkc",
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


def extra_id_tokens() -> dict[str, int]:
    """`<extra_id_0>` is the last one, as in T5."""
    return {f"<extra_id_{k}>": PIECES + EXTRA_IDS - 1 - k for k in range(EXTRA_IDS)}


def token_entry(content: str) -> dict:
    return {"content": content, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False}


def write_spiece_folder(folder: Path) -> None:
    """`spiece.model` and the three JSON files of the published folders; no `tokenizer.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "spiece.model").write_bytes(train_spiece())
    extra = extra_id_tokens()
    special = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    write_json(folder / "added_tokens.json", extra)
    write_json(
        folder / "special_tokens_map.json",
        {"additional_special_tokens": list(extra)} | {name: token_entry(text) for name, text in special.items()},
    )
    by_id = {0: "<pad>", 1: "</s>", 2: "<unk>"} | {number: text for text, number in sorted(extra.items(), key=lambda item: item[1])}
    write_json(
        folder / "tokenizer_config.json",
        {
            "added_tokens_decoder": {str(number): token_entry(text) | {"special": True} for number, text in by_id.items()},
            "additional_special_tokens": list(extra),
            "clean_up_tokenization_spaces": True,
            "eos_token": "</s>",
            "extra_ids": EXTRA_IDS,
            "legacy": True,
            "model_max_length": T5_MAX_LENGTH,
            "pad_token": "<pad>",
            "sp_model_kwargs": {},
            "tokenizer_class": "T5Tokenizer",
            "unk_token": "<unk>",
        },
    )


def write_json_folder(folder: Path, spiece_folder: Path) -> None:
    """`tokenizer.json` and `tokenizer_config.json` alone, as newer transformers saves the same tokenizer."""
    T5Tokenizer.from_pretrained(spiece_folder).save_pretrained(folder)
    for path in folder.iterdir():
        if path.name not in ("tokenizer.json", "tokenizer_config.json"):
            path.unlink()
