"""Pages: self-contained, harmless whatever they are given, and whole."""

from html.parser import HTMLParser

import numpy as np
import pytest

from pipelines.plots.page import Fact, FigureCard, Meter, Page, Tile, escape
from pipelines.plots.picture import Picture, encode_picture

HOSTILE = '<script>alert("x")</script>\'"&\x1b[31m'


class Elements(HTMLParser):
    """Collects the tags and attributes that a browser would see."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in ("meta", "img", "source"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def tiny_picture(side: int = 4) -> Picture:
    return encode_picture(np.zeros((side, side, 3), dtype=np.uint8), media_type="image/png")


def full_page(words: str) -> str:
    page = Page(words, lead=words, kicker=words, footer=words)
    section = page.section(words, words)
    section.text(words).note(words, warn=True).facts([Fact(words, words, "lead")])
    section.figures([FigureCard(tiny_picture(), words, words, words)])
    section.table([words, "n"], [[words, 1], [Meter(0.5, words), 2]], caption=words)
    section.images([Tile(tiny_picture(), words, words, warn=True)], title=words)
    section.commands([words], title=words, caption=words).details(words, words)
    page.section("Second")
    return page.render().decode()


def test_hostile_text_becomes_harmless_everywhere() -> None:
    calm, hostile = Elements(full_page("calm")), Elements(full_page(HOSTILE))
    assert hostile.tags == calm.tags
    assert [name for name, _ in hostile.attributes] == [name for name, _ in calm.attributes]
    assert "script" not in hostile.tags
    assert "\x1b" not in full_page(HOSTILE)


def test_a_page_fetches_nothing_and_forbids_everything_else() -> None:
    text = full_page("calm")
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
    assert f'content="{policy}"' in text
    assert "http:" not in text
    assert "https:" not in text
    assert "url(" not in text
    addresses = [value for name, value in Elements(text).attributes if name in ("src", "srcset", "href")]
    assert addresses
    assert all(value.startswith(("data:image/", "#s")) for value in addresses)


def test_every_element_is_closed_in_order() -> None:
    assert Elements(full_page("calm")).open == []


def test_the_same_content_gives_the_same_bytes() -> None:
    assert full_page("calm") == full_page("calm")


def test_dark_rendering_is_offered_on_screens_only() -> None:
    picture = Picture(b"light", "image/png", 480, 300, dark=b"dark")
    page = Page("t")
    page.section("s").figures([FigureCard(picture, "f")])
    text = page.render().decode()
    dark_uri = picture.data_uri(dark=True)
    assert f'<source media="screen and (prefers-color-scheme: dark)" srcset="{dark_uri}">' in text
    assert f'src="{picture.data_uri()}" width="480" height="300" alt="f"' in text


def test_small_images_show_their_pixels() -> None:
    page = Page("t")
    page.section("s").images([Tile(tiny_picture(8), "small"), Tile(tiny_picture(100), "large")])
    text = page.render().decode()
    assert text.count('class="pixels"') == 1
    assert 'alt="small" class="pixels"' in text


@pytest.mark.parametrize(
    ("cell", "shown"),
    [
        (1234567, "1,234,567"),
        (0.0123456, "0.01235"),
        (None, "\N{EN DASH}"),
        (Meter(2.0, "97.5%"), '<span class="meter"><i><b style="width:100.0%"></b></i>97.5%</span>'),
        ("a < b", "a &lt; b"),
    ],
)
def test_cells_are_written_for_readers(cell: str | int | float | Meter | None, shown: str) -> None:
    page = Page("t")
    page.section("s").table(["c"], [[cell]])
    assert f">{shown}</td>" in page.render().decode()


def test_columns_of_numbers_align_right() -> None:
    page = Page("t")
    page.section("s").table(["name", "n"], [["a", 1], ["b", None]], lead_row=1)
    text = page.render().decode()
    assert "<th class=number scope=col>n</th>" in text
    assert "<th scope=col>name</th>" in text
    assert "<tr class=lead><td>b</td>" in text


def test_a_ragged_table_is_refused() -> None:
    with pytest.raises(ValueError, match=r"a row of 1 cells in a table of 2 columns: \['a'\]"):
        Page("t").section("s").table(["name", "n"], [["a"]])


def test_control_characters_and_lone_surrogates_do_no_harm() -> None:
    assert escape("a\x00b\x1b[2Jc\nd") == "a\ufffdb\ufffd[2Jc\nd"
    page = Page("name \udcff")
    page.section("s")
    assert b"name ?" in page.render()
