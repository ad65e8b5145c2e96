"""The XML attributes of an image (``ismrmrdMeta``): kept, and what we did added."""

from xml.etree import ElementTree

HISTORY = "POAN"
COMMENT = "AI-PROCESSED, NOT FOR DIAGNOSIS"


def described(attributes: str, scale: int, model: str) -> str:
    """The attributes of a super-resolved image.

    What scanners read: the role, the history, the suffix of the series' name, and that the
    geometry is that of the header and not of the protocol. Attributes that are no XML are replaced.

    >>> "POAN" in described("", 2, "t2_x2")
    True
    """
    root = _parsed(attributes)
    _set(root, "DataRole", "Image", "AI")
    _set(root, "ImageProcessingHistory", *_values(root, "ImageProcessingHistory"), HISTORY)
    _set(root, "SequenceDescriptionAdditional", f"SR_x{scale}_AI")
    _set(root, "Keep_image_geometry", "1")
    _set(root, "ImageComments", f"{COMMENT}; in-plane super-resolution x{scale}, {model}")
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True)


def _parsed(attributes: str) -> ElementTree.Element:
    try:
        root = ElementTree.fromstring(attributes)
    except ElementTree.ParseError:
        return ElementTree.Element("ismrmrdMeta")
    return root if root.tag == "ismrmrdMeta" else ElementTree.Element("ismrmrdMeta")


def _entries(root: ElementTree.Element, name: str) -> list[ElementTree.Element]:
    return [entry for entry in root.findall("meta") if entry.findtext("name") == name]


def _values(root: ElementTree.Element, name: str) -> list[str]:
    return [v.text or "" for entry in _entries(root, name) for v in entry.findall("value")]


def _set(root: ElementTree.Element, name: str, *values: str) -> None:
    for entry in _entries(root, name):
        root.remove(entry)
    entry = ElementTree.SubElement(root, "meta")
    ElementTree.SubElement(entry, "name").text = name
    for value in values:
        ElementTree.SubElement(entry, "value").text = value
