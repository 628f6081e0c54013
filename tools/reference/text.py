"""Golden results for the text side: tokeniser, caption cleaning, resolution bins.

Writes, under fixtures/text:
  tokens.json    text -> token ids, by transformers and by sentencepiece itself
  captions.json  `_text_preprocessing` with and without `clean_caption`, and the
                 two libraries it leans on, alone: BeautifulSoup's text and ftfy
  bins.json      the aspect-ratio tables and `classify_height_width_bin`
"""

import hashlib
import json
import os
import sys
import warnings
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
warnings.filterwarnings("ignore")

import bs4
import diffusers
import ftfy
import sentencepiece
import tokenizers
import transformers
from bs4 import BeautifulSoup
from diffusers import PixArtAlphaPipeline
from diffusers.image_processor import PixArtImageProcessor
from diffusers.pipelines.pixart_alpha import pipeline_pixart_alpha, pipeline_pixart_sigma
from transformers import T5Tokenizer

ROOT = Path(__file__).resolve().parents[2] / "fixtures"
TOKENIZER = ROOT / "checkpoints" / "alpha-256" / "tokenizer"
OUT = ROOT / "text"
MAX_LENGTH = 120

FAMILY = "\U0001f468\u200d\U0001f469\u200d\U0001f467"

TOKEN_TEXTS = [
    "",
    " ",
    "   \t \n ",
    "a small cactus with a happy face in the sahara desert",
    "A Small Cactus With A Happy Face",
    "  leading spaces",
    "trailing spaces   ",
    "many     spaces   inside",
    "tab\tand\ttab",
    "line\nbreak\r\nand\rmore",
    "no\u00a0break\u2003em\u3000ideographic",
    "form\x0cfeed\x0bvertical",
    "line\u2028sep\u2029para\u0085next",
    "a naïve café in são paulo, zürich",
    "a nai\u0308ve cafe\u0301 in sa\u0303o paulo",
    "jalapeño",
    "jalapen\u0303o",
    "ﬁne ﬂower oﬃce",
    "ｆｕｌｌ ｗｉｄｔｈ １２３！",
    "e\u0301\u0323 two marks",
    "e\u0323\u0301\u0308 three marks",
    "ﬁ\u0301 mark after a ligature",
    "\uff45\u0301 mark after full width",
    "ª\u0301 º ² ½ ™ mark after a sign",
    "\u1112\u1161\u11ab\u1100\u1173\u11af jamo",
    "한글 syllables",
    "ｶﾞｷﾞ half-width kana",
    "か\u3099 combining voice mark",
    "क्षि नमस्ते",
    "สวัสดี",
    "\u0958 composition exclusion \u0915\u093c",
    "Ω Å K letterlike",
    "ohm \u2126 angstrom \u212b kelvin \u212a",
    "Straße ßẞ",
    "İstanbul ıi",
    "日本語の猫",
    "a 猫 cat",
    "مرحبا بالعالم",
    "שלום עולם",
    "привет мир",
    "emoji \U0001f600 and \u2764\ufe0f",
    "family " + FAMILY + " together",
    "flags \U0001f1eb\U0001f1f7\U0001f1ef\U0001f1f5",
    "thumb \U0001f44d\U0001f3fd",
    "keycap 1\ufe0f\u20e3",
    "unknown \u2603\u2604 runs \u2603 \u2603",
    "\u2603",
    "a\u2603b",
    "control \x00\x01\x02\x1b\x7f chars",
    "c1 \x80\x9f chars",
    "zero\u200bwidth\u200cjoin\u200der\u2060word\ufeffbom",
    "soft\u00adhyphen",
    "bidi \u200eleft \u200fright \u202a\u202c",
    "replacement \ufffd object \ufffc",
    "private \ue000 use",
    "<extra_id_0>",
    "a <extra_id_0> b",
    "a<extra_id_99>b <extra_id_100>",
    "</s>",
    "before</s>after",
    "before </s> after",
    "<pad> inside <pad>",
    "<unk>",
    "an <unk> here",
    "<s> </s>.",
    "< pad > </ s >",
    "▁",
    "▁literal ▁ and in▁side▁",
    "▁▁two",
    " ▁ spaced",
    "...!!!???,,,;;;:::",
    "--- ___ ~~~ ### @@@",
    "(a) [b] {c} \"d\" 'e' `f`",
    "“curly” ‘quotes’ – dash — long… ellipsis",
    "8k, 35mm f/1.8 1:200 23°c $25.99 100% 2+2=4",
    "#hashtag @user a_b_c-d",
    "https://example.com/a?b=c&d=e",
    "supercalifragilisticexpialidocious pneumonoultramicroscopicsilicovolcanoconiosis",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "zzzz qqqq xxxx",
    " ".join(["cat"] * 119),
    " ".join(["a red fox under a starry sky, oil painting,"] * 14),
    " ".join(["a red fox under a starry sky"] * 84)[:-1],
]

CAPTIONS = [
    # Ordinary prompts.
    "",
    "   ",
    "A small cactus with a happy face in the Sahara desert.",
    "  An astronaut riding a horse, 8k, highly detailed  ",
    "a cat, a dog; and a mouse: friends",
    "portrait photo, 35mm, f/1.8, 1/200s, iso 100",
    "Price: $25.99 (10% off)",
    "It's 12:30 on July 4, 1996.",
    "Don't panic; breathe...",
    "scale 1:200 - version 2.0",
    "100% wool + 5 pieces",
    "50%25 done a%20b+c",
    "%e4%bd%a0 %ff percent bytes",
    "İstanbul ΟΔΟΣ STRASSE ẞ",
    # Persons, nicknames, hashtags.
    "<person> and <PERSON> walking",
    "photo by @john_doe and @jane.doe",
    "mail me@example.org or me@example.com",
    "@",
    "#art #digital_painting #1 #123 #1234 #12345 #1234567",
    "123456 1234567 12345",
    # URLs.
    "see https://example.com/path?q=1 now",
    "http://a.b http:// https:/x HTTPS:///Y",
    "www.example.com and example.org/a-b/ end",
    "visit site.co.uk or my.site.ru/path/to",
    "pixabay.com",
    "user@site.com/x site.net@home",
    "www:foo www://bar",
    "file.com-pany edu.gov.it x.community",
    "трек.ru сайт.com",
    # Markup.
    "<b>bold</b> and <i>italic</i>",
    "line<br>break<br/>twice",
    "<p>one</p><p>two</p>",
    "a < b and c > d",
    "a<b and c>d",
    "i <3 you",
    "<lora:style:0.8> a cat",
    "a <cat",
    "a cat </b> here </",
    "<!-- hidden --> shown <!doctype html> <?php echo ?>",
    "<script>alert(1)</script>text<style>p{}</style>",
    "<a href=\"https://x.com\">link</a>",
    "<ruby>kanji<rt>reading</rt></ruby> <template>t</template>",
    "&lt;b&gt;bold&lt;/b&gt;",
    "&amp;lt;b&amp;gt;",
    "fish &amp; chips & peas &ampersand",
    "&quot;quoted&quot; &quot half &quot",
    "AT&T r&b q&a; &unknown; &copy 2020 &copy;",
    "&#65;&#x42;&#233;&#128512; &#xZZ &#; &#",
    "&nbsp;&eacute;&Eacute;&hellip;&mdash;&ldquo;x&rdquo;",
    "tom &",
    "tom &j",
    "&lt;person&gt;",
    "&#195;&#169; &#150; &#151;",
    # Scripts that are taken out, and those that are not.
    "猫 cat 犬",
    "日本語のネコ カタカナ ｶﾀｶﾅ",
    "㈱ ㎡ ㇰ ㇀ ䷀ 㐀 鿿",
    "한국어 русский العربية ไทย हिन्दी",
    "𠀀 outside the plane",
    # Dashes and quotes.
    "a‐b‑c‒d–e—f―g",
    "a−b ー 〜 － ﹣ ⸺ ֊",
    "`a` ´b´ «c» “d” „e‟ ¨f¨ ‘g’ ‚h‛",
    "\"\"\"AUSVERKAUFT\"\"\"",
    "''two'' \"'mixed'\"",
    "\"quoted caption\"",
    "'quoted caption'",
    "\"half quoted",
    "'it's quoted'",
    "\"",
    "“curly caption”",
    "“”",
    # Addresses, times, newlines.
    "server 192.168.0.1 and 1.2.3.4567",
    "article 1:23 ",
    "seen at 4:56\n",
    "time 4:56 end",
    "line\\nbreak and\nreal\r\nbreak\ttab",
    # File names and formats.
    "IMG_1234.jpg photo.png my.file.name.webp",
    "clip.mp4 doc.pdf app.apk x.jpgs .png",
    "png image of a cat, jpg images, a pdf, jpgx bmpy",
    "transparent png",
    # Dots and punctuation.
    "wait... what.. no. . end",
    "a . b .c d. e",
    ".hidden",
    ".hidden file",
    "***SALE*** #SALE~~~ (now) [50%] {a} | b \\ c / d",
    "® • © ™ & @ · º ½ ¾ ¿ ¡ § ~",
    "a,b,c.d/e x,1 1,x",
    "comma,and.dot but 3.14 and 1,000",
    "hello : world  : again :x",
    ",starts with comma",
    "-starts with dash",
    "ends with dash-",
    "ends with plus+",
    "ends with colon:",
    ";semi;",
    "__under__",
    "- _ '",
    # Words joined by dashes or underscores.
    "this-is-my-cute-cat",
    "this_is_my_cute_cat",
    "one-two-three-four",
    "one-two_three-four five",
    "a-b-c",
    # Ids and sizes.
    "jc6640 jc6640vc 6640vc231 a1b2c3 j2d1a2a abcd123 ab12",
    "x86 mp3 4k 8K uhd1080p 3d 2d4 r2d2 c3po",
    "1080x1920 px 12.5x3 3х4 5×6 7 x 8 9x",
    "x 1080 px",
    "page 3 of 12, page12, Page  7",
    "№5 5th 1st 2nd",
    "x² + y³ ½ cup ①② Ⅷ Ⓐ",
    "a١٢٣ digits ٣٤٥٦٧٨",
    "co\u0301de1 cafe\u0301s n\u0303",
    # Selling words.
    "free shipping worldwide free shipping shipping worldwide shipping",
    "free download download free freedownload downloads",
    "click for more click on image click  for x clicks for y",
    # Mojibake.
    "cafÃ© naÃ¯ve",
    "caf&#195;&#168; Ã¨ Ãª",
    "â€œquotedâ€\u009d â€˜singleâ€™",
    "waitâ€¦ what",
    "dash â€“ and â€” here",
    "bullet â€¢ and â‚¬5 and â„¢",
    "å±±æ°´ painting",
    "ð\u009f\u0098\u0080 smile ðŸ˜€",
    "Ð¿Ñ€Ð¸Ð²ÐµÑ‚",
    "Ã la mode voilÃ ",
    "lossy â€� text",
    "c1 \u0093quotes\u0094 \u0085 dots",
    "\u2603 c1 \u0093quotes\u0094",
    "\u2603 mixed waitâ€¦ what",
    "Â£5 and Â°C",
    "ã‚¢ã‚¤",
    "вЂ™ cyrillic mojibake",
    "№ ∆ √ ≈ ≠ ∞ maths",
    # What else ftfy touches.
    "ﬁne ﬂower oﬃce ĳ ǆ ŉ",
    "ＦＵＬＬ　ｗｉｄｔｈ ＆ｌｔ；ｂ＆ｇｔ；",
    "cafe\u0301 decomposed",
    "red \x1b[31mansi\x1b[0m text",
    "zero\u200bwidth soft\u00adhyphen \ufeffbom \u2060wj",
    "control \x00\x07\x1c\x1f\x7f end",
    "no\u00a0break \u2003em\u3000space\u2028line\u2029para",
    "object \ufffc interlinear \ufff9a\ufffa",
    # Emoji.
    "happy 😀 face ❤️ flag 🇫🇷 family " + FAMILY,
    "😀",
    "1️⃣ keycap",
    # Long.
    " ".join(["a very long caption, with-many_parts"] * 20),
]

MARKUP = [
    "plain",
    "a < b",
    "a<b",
    "a<b>c",
    "a <b c",
    "a </b> c",
    "a </ b> c",
    "a </",
    "a </>b",
    "a </3>b",
    "<",
    "a <",
    "a <!",
    "a <!x> b",
    "a <!-- b",
    "a <!-- b --> c",
    "a <!-->b--> c",
    "a <!---- b -- > c",
    "a <?b> c",
    "a <?b",
    "<![cdata[x <b> y]]>z",
    "<!doctype html>x",
    "<b a=\"1>2\">x</b>",
    "<b a='1>2>x",
    "<b a=1 / c>x",
    "<b/>x<br/>y<br>z</br>w",
    "<b  >x</b  >y",
    "<b><i>x</b>y</i>z",
    "<p>a<p>b",
    "<script>a<b>c</script>d",
    "<script>never closed <b>x",
    "<style>a</style ><textarea> b </textarea>",
    "<title>t &amp; u</title>",
    "<rt>a</rt><rp>b</rp><ruby>c<rt>d</rt></ruby><template>e<b>f</b></template>",
    "x  <b>   </b>  y <b> \n </b>",
    "<pre>   </pre>|",
    "&amp;&lt;&gt;&quot;&apos;&nbsp;|",
    "&amp &lt &copy &notit; &not;it",
    "&AMP; &Eacute; &EACUTE; &eacute",
    "&unknown; &unknown",
    "&hearts;&spades;&fjlig;&ngE;",
    "&a",
    "& a &",
    "a&",
    "a&b=c&d",
    "a &b",
    "a &#",
    "a &#; b",
    "a &#1",
    "a &#65",
    "a &#65 b",
    "&#65;&#x41;&#X41;&#x1F600;",
    "&#65a;&#x41g;",
    "&#0;&#13;&#128;&#129;&#150;&#159;&#160;",
    "&#55296;&#1114111;&#1114112;&#99999999999;",
    "&#xzz; &#x; b",
    "a &# b; c",
    "1 &lt 2 &gt 0",
    "<3 <33 < 3",
    "<lora:x:0.5>y",
    "<é>x</é>",
    "tab\there\r\nnext\rlast",
    "nul\x00in <b\x00c>text",
]

FTFY = [
    "cafÃ©",
    "voilÃ le travail",
    "Ã la mode",
    "sÃ³ mais Ã¡gua",
    "â€œquotesâ€\x9d and â€™s",
    "â€œ like this â€�",
    "â€¦ â€” â€“ â€¢ â‚¬ â„¢",
    "å±±æ°´",
    "ã‚¢ã‚¤ã‚¦",
    "ðŸ˜€ ðŸ‘\x8d",
    "Ð¿Ñ€Ð¸Ð²ÐµÑ‚ Ð¼Ð¸Ñ€",
    "Î±Î²Î³",
    "Ø§Ù„Ø¹Ø±Ø¨ÙŠØ©",
    "CafÃƒÂ© twice",
    "mixed café and cafÃ© here ok",
    "naïve façade Ångström — fine",
    "Å\u009b and Ä\u0099",
    "caf\x8e macroman",
    "cafŽ",
    "√© and √†",
    "‚Äúmac‚Äù",
    "cp437 cafΘ ├⌐",
    "вЂњcp1251вЂќ",
    "РџСЂРёРІРµС‚",
    "ā€œbalticā€¯",
    "β€™greek",
    "ĂŠ central Ĺ‚",
    "Â£5 Â°C Â© 2020",
    "\x85 \x91a\x92 \x93b\x94 \x96",
    "l\x92humanit\xe9",
    "\u2018a\u2019 \u201ab\u201b \u201cc\u201d \u201ed\u201f \u02bce",
    "ﬀ ﬁ ﬂ ﬃ ﬄ ﬅ ﬆ Ĳ ĳ Ǆ ǅ ǆ ŉ",
    "ＬＯＵＤ　ＮＯＩＳＥＳ ｶﾞ ﾞ ￠ ￦ ﾡ",
    "＆ａｍｐ；",
    "&lt;b&gt; &hellip; &NTILDE; &#39; &amp;amp; &foo;",
    "<b> &lt; kept",
    "first &lt;\n<b> &lt;\n&lt; third",
    "a\r\nb\rc\u2028d\u2029e\x85f",
    "\x1b[1;31mred\x1b[0m \x1b[x",
    "\x00\x08\x0b\x0e\x1f\x7f\u206a\ufeff\ufff9\ufffc|",
    "e\u0301 A\u030a \u1112\u1161\u11ab \u212b \u2126",
    "\u0344 \u0958 \u2adc",
    "zero\u200bwidth\u00ad",
    "Ã",
    "Ã ",
    "l'Ã©tÃ©",
    "×² ≈° ºª",
    "œuvre œ!",
    "¡¿ «x» ¦ ¬ ¯",
    "Ã¯Â¿Â½",
]

SIZES = [
    (1024, 1024), (512, 512), (256, 256), (2048, 2048), (768, 1024), (1024, 768), (720, 1280), (1280, 720),
    (1080, 1920), (1920, 1080), (900, 2000), (1440, 3200), (2000, 900), (8, 8), (8, 4096), (4096, 8),
    (300, 1000), (340, 1000), (375, 1000), (410, 1000), (450, 1000), (490, 1000), (510, 1000), (545, 1000),
    (585, 1000), (640, 1000), (700, 1000), (750, 1000), (800, 1000), (850, 1000), (910, 1000), (970, 1000),
    (1035, 1000), (1100, 1000), (1170, 1000), (1250, 1000), (1335, 1000), (1420, 1000), (1565, 1000),
    (1710, 1000), (1875, 1000), (2045, 1000), (2245, 1000), (2450, 1000), (2750, 1000), (3500, 1000),
    (1000, 640), (832, 1216), (1216, 832), (123, 457),
]  # fmt: skip


def trimmed(ids, mask):
    return [i for i, m in zip(ids, mask) if m]


def tokens():
    model_file = TOKENIZER / "spiece.model"
    tokenizer = T5Tokenizer.from_pretrained(TOKENIZER)
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(model_file))
    cases = []
    for text in TOKEN_TEXTS:
        padded = tokenizer(text, padding="max_length", max_length=MAX_LENGTH, truncation=True, add_special_tokens=True)
        assert len(padded.input_ids) == MAX_LENGTH
        case = {"text": text, "ids": trimmed(padded.input_ids, padded.attention_mask)}
        whole = tokenizer(text, padding="longest").input_ids
        if whole != case["ids"]:
            case["untruncated"] = whole
        own = pieces.encode(text) + [pieces.eos_id()]
        if own != whole:
            case["sentencepiece"] = own
        cases.append(case)
    return {
        "versions": {
            "transformers": transformers.__version__,
            "tokenizers": tokenizers.__version__,
            "sentencepiece": sentencepiece.__version__,
        },
        "spiece_sha256": hashlib.sha256(model_file.read_bytes()).hexdigest(),
        "max_length": MAX_LENGTH,
        "note": "sentencepiece is given only where it differs from the untruncated ids",
        "cases": cases,
    }


def captions():
    pipeline = PixArtAlphaPipeline.__new__(PixArtAlphaPipeline)

    def case(text):
        return {
            "text": text,
            "plain": pipeline._text_preprocessing(text, clean_caption=False)[0],
            "once": pipeline._clean_caption(text),
            "clean": pipeline._text_preprocessing(text, clean_caption=True)[0],
        }

    return {
        "versions": {
            "diffusers": diffusers.__version__,
            "ftfy": ftfy.__version__,
            "beautifulsoup4": bs4.__version__,
            "python": sys.version.split()[0],
        },
        "captions": [case(text) for text in CAPTIONS],
        "markup": [{"text": t, "result": BeautifulSoup(t, features="html.parser").text} for t in MARKUP],
        "ftfy": [{"text": t, "result": ftfy.fix_text(t)} for t in FTFY],
    }


def bins():
    out = {}
    for name, module in [
        ("256", pipeline_pixart_alpha),
        ("512", pipeline_pixart_alpha),
        ("1024", pipeline_pixart_alpha),
        ("2048", pipeline_pixart_sigma),
    ]:
        table = getattr(module, f"ASPECT_RATIO_{name}_BIN")
        found = [[h, w, *PixArtImageProcessor.classify_height_width_bin(h, w, ratios=table)] for h, w in SIZES]
        out[name] = {"table": [[ratio, int(h), int(w)] for ratio, (h, w) in table.items()], "classified": found}
    return out


def write_json(name, value, indent=None):
    # ASCII only, so that invisible characters show.
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / name).write_text(json.dumps(value, indent=indent) + "\n")


def write_cases(name, value):
    """One case a line, for readable differences."""
    parts = []
    for key, item in value.items():
        if isinstance(item, list):
            lines = ",\n".join(json.dumps(entry) for entry in item)
            parts.append(f"{json.dumps(key)}: [\n{lines}\n]")
        else:
            parts.append(f"{json.dumps(key)}: {json.dumps(item)}")
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / name).write_text("{" + ",\n".join(parts) + "}\n")


def main():
    write_cases("tokens.json", tokens())
    write_cases("captions.json", captions())
    write_json("bins.json", bins())
    print(f"{len(TOKEN_TEXTS)} token cases, {len(CAPTIONS)} captions, {len(MARKUP)} markup, {len(FTFY)} ftfy")


if __name__ == "__main__":
    main()
