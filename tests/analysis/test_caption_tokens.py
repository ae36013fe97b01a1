"""Tokens of captions are those of Stanford's tokenizer 3.4.1 (-preserveLines -lowerCase)."""

import random

import pytest

from jaxseq.analysis import ptb_tokens
from jaxseq.analysis.caption_tokens import PUNCTUATION, tokenized

# Texts of our own, and what the Java program makes of them after the 17 tokens are dropped.
STANFORD = [
    (
        "A man (in a hat) isn't riding a horse, it's standing.",
        "a man -lrb- in a hat -rrb- is n't riding a horse it 's standing",
    ),
    ("Two dogs' toys & a cat's ball -- on the grass...", "two dogs toys & a cat 's ball on the grass"),
    ("The sign says \"STOP\" and 'go'.", "the sign says stop and go"),
    ("U.S. flag at 10:30 a.m. on 1/2/2000", "u.s. flag at 10:30 a.m. on 1/2/2000"),
    (
        "Mr. Smith and Dr. Jones cannot gonna wanna gotta lemme gimme",
        "mr. smith and dr. jones can not gon na wan na got ta lem me gim me",
    ),
    (
        "A black-and-white photo of a t-shirt – with 3.5 lbs. of apples",
        "a black-and-white photo of a t-shirt with 3.5 lbs of apples",
    ),
    ("A red/blue ball and/or a cup", "a red/blue ball and/or a cup"),
    ("It's a 1,000 piece puzzle; 50% off! $5.00 #1", "it 's a 1,000 piece puzzle 50 % off $ 5.00 # 1"),
    (
        "I've they'll we're you'd he's I'm don't won't can't shouldn't've",
        "i 've they 'll we 're you 'd he 's i 'm do n't wo n't ca n't should n't 've",
    ),
    ("[brackets] {curly} <angle>", "-lsb- brackets -rsb- -lcb- curly -rcb- <angle>"),
    ("the boys' room 'tis the season 'twas", "the boys room 't is the season 't was"),
    ("café naïve Zürich 東京", "café naïve zürich 東京"),
    ("\"\" '' `` ` ' - -- --- . .. ... ....", ""),
    ("a.b c.d. e.g. i.e. etc. vs. St. Mt. No. 5", "a.b c.d. e.g. i.e. etc. vs. st. mt. no. 5"),
    (
        "http://www.example.com/a?b=c and www.foo.org or me@x.com",
        "http://www.example.com/a?b=c and www.foo.org or me@x.com",
    ),
    ("10-year-old boy, 5-6 people; 3rd 70s '70s 1990's", "10-year-old boy 5-6 people 3rd 70s '70s 1990 's"),
    (
        "A man * with + two = three @ four ~ five ^ six | seven \\ eight _ nine",
        "a man * with + two = three @ four ~ five ^ six | seven \\ eight _ nine",
    ),
    ("What?! Really!! no... yes…", "what ?! really !! no yes"),
    ("a woman’s hand “quoted” ‘single’", "a woman 's hand quoted single"),
    ("Hello,world.This is", "hello world.this is"),
    ("the end of U.S.", "the end of u.s."),
    ("at 5 p.m.", "at 5 p.m."),
    ("p.m. and a.m", "p.m. and a.m"),
    (".5 -5 +3 1.5x 2x4 4x4's", ".5 -5 +3 1.5 x 2x4 4x4 's"),
    ("K-9 mother-in-law's  co-op re-", "k-9 mother-in-law 's co-op re"),
    ("-dash start", "dash start"),
    ("'start of quote' and \"double 'nested' quote\"", "start of quote and double nested quote"),
    ("Jan. Feb. Mon. Inc. Co. Corp. Ltd. Ave. Blvd. Rd.", "jan. feb. mon. inc. co. corp. ltd. ave. blvd. rd."),
    ("A man's best friend is his dog's.", "a man 's best friend is his dog 's"),
    ("$100 £5 €3 5¢ 90° ½ 2½", "$ 100 # 5 $ 3 5 cents 90 ° 1/2 2 1/2"),
    ("1/2 cup 3-1/2 1,2 1, 2", "1/2 cup 3-1/2 1,2 1 2"),
    ("n't 's 'em 'til 'cause", "n't 's 'em 'til 'cause"),
    ("A  double   spaced\ttab", "a double spaced tab"),
    ("end", "end"),
    ("D'Angelo O'Brien McDonald's", "d'angelo o'brien mcdonald 's"),
    ("dont cant its", "dont cant its"),
    ("a lot of... things,and stuff.", "a lot of things and stuff"),
    ("big no. the dog says no. Then a dog sits in the sun.", "big no the dog says no then a dog sits in the sun"),
    ("A man and a sat. sun. wed. mar. in.", "a man and a sat sun wed. mar. in"),
    ("!? !!! ??? ?? ,, ;; :: .,", "!? !!! ??? ??"),
    ("e.g., and i.e., so", "e.g. and i.e. so"),
    ("it's a dogs'toys 'quoted' word's' 's-hertogenbosch", "it 's a dogs toys quoted word 's 's hertogenbosch"),
    ("A man,a woman;a child:a dog", "a man a woman a child a dog"),
    ("fish&chips black&white 50/50 24/7 w/o w/ b/w", "fish & chips black & white 50/50 24/7 w/o w / b/w"),
    ("what's-his-name dog's-eye man's-best", "what 's his-name dog 's eye man 's best"),
    ("N'SYNC rock'n roll 'n' bells 'round 'bout '90 '90's", "n'sync rock 'n roll 'n' bells round bout '90 90 's"),
    ("mid-air. two-day-old. side-by-side.", "mid-air two-day-old side-by-side"),
    ("A ' b \" c ` d", "a b c d"),
    ("don\"t \"don't\" ('it's')", "don t do n't -lrb- it 's -rrb-"),
    ("i'm I'M CAN'T Isn'T aren't. weren't, ain't", "i 'm i 'm ca n't is n't are n't were n't ai n't"),
    ("how'd'ya d'you c'mon y'know 'twould 'twasn't", "how 'd ya d'you c'mon y' know twould 't was n't"),
    ("more'n gotcha dunno whatcha wannabe cannots", "more 'n gotcha dunno whatcha wannabe cannots"),
    ("a.m.? p.m.! U.S.A., U.K.'s", "a.m. p.m. u.s.a. u.k. 's"),
    ("A.B.C. D.J. DJ.s T.V. TV's T.V.'s", "a.b.c. d.j. dj.s t.v. tv 's t.v. 's"),
    ("4ft 6' 6\" 5'10\" 6'x4' 5lb. 3-D 3D 2-3 x-ray", "4ft 6 6 5 10 6 x4 5lb 3-d 3d 2-3 x-ray"),
    ("A — b – c ―d e--f g---h i - j k -- l", "a b c d e f g h i j k l"),
]
ABBREVIATIONS = (
    "apr aug sept sep oct nov dec mar thurs jun jan feb gen col lt sgt capt ph.d ft dept est ave blvd rd sq bldg"
)
ABBREVIATIONS += (
    " assn bros corp co inc ltd jr sr esq messrs drs mrs ms prof mt st va calif fla tex mass wash al cf v adm maj"
)
WORDS = "sat sun may approx min max hr in oz lb lbs pt fig vol hwy pl ln no nos viz ca dog"


@pytest.mark.parametrize(("text", "tokens"), STANFORD)
def test_tokens_are_those_of_stanfords_tokenizer(text, tokens):
    assert ptb_tokens(text) == tokens.split()


def test_abbreviations_keep_their_period_as_stanfords_do():
    for word in ABBREVIATIONS.split():
        assert ptb_tokens(f"x {word.title()}. x") == ["x", f"{word}.", "x"]
    for word in WORDS.split():
        assert ptb_tokens(f"x {word.title()}. x") == ["x", word, "x"]


def test_seventeen_marks_are_dropped():
    assert len(PUNCTUATION) == 17
    for mark in PUNCTUATION - {"-LRB-", "-RRB-", "-LCB-", "-RCB-"}:
        assert ptb_tokens(f"a {mark} b") == ["a", "b"]


def test_tokens_of_plain_words_are_the_words_and_stay_so():
    chance = random.Random(0)
    for _ in range(50):
        text = " ".join(chance.choices(["a", "red", "three", "Über", "black-and-white", "2x4", "東京"], k=9))
        assert ptb_tokens(text) == text.lower().split()
        assert ptb_tokens(" ".join(ptb_tokens(f"  {text}!"))) == text.lower().split()


def test_any_text_has_tokens_without_white_space():
    chance = random.Random(0)
    letters = "ab\u00e9'\u2019\"`.,:;!?-/&@#$()[]{}<>0123 \t\n\u2026\u00bd_%+~\U0001f415"
    for _ in range(500):
        text = "".join(chance.choices(letters, k=chance.randrange(30)))
        tokens = ptb_tokens(text)
        assert all(token and not any(map(str.isspace, token)) and token not in PUNCTUATION for token in tokens)


def test_what_cannot_be_tokenized_is_named():
    with pytest.raises(ValueError, match="unknown tokenizer '13a'; known: ptb, words"):
        tokenized(["a"], [["a"]], "13a")
