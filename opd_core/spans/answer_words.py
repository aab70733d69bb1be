"""The words that stand around times in an answer, by what they say about them.

    strong   joins two times into a span        3.0 to 7.5
    weak     joins two where nothing else does  3.0, 7.5; between 3.0 and 7.5
    opens    the next time may begin a span     from 3.0, between 3.0
    start    names the next time the start      it begins at 3.0
    end      names the next time the end        end: 7.5
    lasts    the next time is a length          lasting 4 s
    fill     says nothing                       at about the 3.0 second mark
    frame    the next number is no time         frame 12

Any other word parts what stands before it from what follows. English first; the few words of other
languages are those that models fall into.
"""

from __future__ import annotations

_WORDS = {
    "strong": "to until إلى till til through thru bis hasta jusqu jusque tot à au al ate até до по "
    "do đến tới hingga sampai ile 到 至 直到 一直到 から まで 에서 부터 까지",
    "weak": "and und et y e en и & 和 与 與 및",
    "opens": "from between von zwischen entre de desde du dès dal da od van från từ dari с со от "
    "между من tussen 从 從 自 在 由",
    "start": "starttime start starts started starting begin begins began beginning onset debut "
    "début commence commences empieza comienza inicio início inizia inizio beginnt "
    "beginn anfang начало начинается 开始 開始 起始 开始于 開始時間 开始时间 开始时刻 시작",
    "end": "endtime end ends ended ending finish finishes finished finishing stop stops stopped "
    "stopping conclude concludes concluding offset fin finit termine termina fine finisce endet "
    "ende конец заканчивается 结束 結束 终止 終了 结束于 結束時間 结束时间 结束时刻 끝 종료",
    "lasts": "last lasts lasted lasting for duration length continues continuing persists dura "
    "dure dauert dauer 持续 持續 时长",
    "fill": "a of at into onwards onward about around approximately approx roughly near nearly "
    "before after including bei beim se на 目 "
    "circa ca exactly just precisely time timestamp timestamps stamp mark point moment it this "
    "that the then in on is was be are its event action clip scene s t sec secs second seconds min "
    "minute minutes value video inclusive within position which he she they ts up by occurring "
    "happening happens occurs sekunde sekunden sekunder sekund segundo segundos seconde "
    "secondes secondo secondi seconden giây detik saniye etwa ungefähr um vers environ le "
    "la el los les alle der die das 秒 第 约 約 大约 大約 时间 時間 的 于 於 は が に で を",
    "frame": "frame frames 帧 第几帧 кадр",
}
KINDS = {word: kind for kind, words in _WORDS.items() for word in words.split()}


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


NUMBERED = _set(
    "step steps scene scenes shot shots segment segments part parts option options chapter "
    "camera person player figure question number no nr top page line round example level item "
    "index clip clips take id ids room gate channel lane track floor bus lesson season episode"
)
"""`step 1 to 2`: numbers after these count, unless they are in seconds."""

THINGS = _set(
    "people persons men women kids children dogs cats times meters metres km miles feet inches "
    "percent per kg fps px pixels years days weeks months dollars points steps items cars "
    "balls attempts players objects degrees long 人 名 个 個 只 次 件 명 번 米"
)
"""`5.0 to 7.0 meters`: what is counted is no time."""

MEASURED = _set("long apart away tall wide deep high")
"""`5 to 7 minutes long`: after these a number with a unit is no time either."""

RECORDINGS = _set("video videos clip movie film recording footage")
"""`a 5-7 minute video`: the length of the whole."""

PROSE = _set(
    "a an as when where while with during and i we you he she it they there these those since "
    "after before into because so but or if not here how what who the may might could would can"
)
"""Words that may follow a span without a unit; any other makes it a count: `5 to 7 people`."""

_ONES = """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen
fifteen sixteen seventeen eighteen nineteen"""
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
_SMALL = {word: value for value, word in enumerate(_ONES.split())}
NUMBERS = _SMALL | {
    ten + sign + one: 10 * tens + value
    for tens, ten in enumerate(_TENS.split(), 2)
    for sign, one, value in [
        ("", "", 0),
        *((sign, one, n) for one, n in _SMALL.items() if 0 < n < 10 for sign in "- "),
    ]
}
"""Numbers in words, for answers that have no others."""

_NAMES_OF_MONTHS = """january february march april june july august september october november
december jan feb mar apr jun jul aug sep sept oct nov dec"""
MONTHS = "|".join(sorted(_NAMES_OF_MONTHS.split(), key=len, reverse=True))
"""All but `may`, which is a verb as well."""
