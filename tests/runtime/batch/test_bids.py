"""Which scans of a dataset are taken, and which metadata hold of them."""

import json
from pathlib import Path
from typing import Any

import pytest

from poan_runtime.batch.bids import find_scans, inherited, read_filters
from poan_runtime.errors import PoanError


def stems(dataset: Path, **chosen: Any) -> list[str]:
    return [scan.stem for scan in find_scans(dataset, **chosen)]


def test_anatomical_suffixes_are_taken_and_nothing_else(make_dataset: Any) -> None:
    dataset = make_dataset(
        [
            "sub-01/anat/sub-01_T1w.nii.gz",
            "sub-01/anat/sub-01_inplaneT2.nii",
            "sub-01/anat/sub-01_T2star.nii.gz",
            "sub-01/anat/sub-01_part-phase_T2w.nii.gz",
            "sub-01/func/sub-01_task-rest_bold.nii.gz",
            "sub-02/ses-a/anat/sub-02_ses-a_acq-ax_FLAIR.nii.gz",
            "derivatives/old/sub-01/anat/sub-01_T1w.nii.gz",
        ]
    )
    assert stems(dataset) == ["sub-01_T1w", "sub-01_inplaneT2", "sub-02_ses-a_acq-ax_FLAIR"]


def test_labels_choose_with_and_without_their_prefix(make_dataset: Any) -> None:
    names = [f"sub-{s}/ses-{v}/anat/sub-{s}_ses-{v}_T2w.nii.gz" for s in "12" for v in "ab"]
    dataset = make_dataset(names)
    assert stems(dataset, subjects=["sub-2"], sessions=["b"]) == ["sub-2_ses-b_T2w"]
    with pytest.raises(PoanError, match=r"--participant-label: no scan .* has sub-3"):
        find_scans(dataset, subjects=["1", "3"])


def test_a_filter_file_chooses_by_entity_for_each_suffix(make_dataset: Any, tmp_path: Path) -> None:
    dataset = make_dataset(
        [
            "sub-1/anat/sub-1_T2w.nii.gz",
            "sub-1/anat/sub-1_acq-ax_run-01_T2w.nii.gz",
            "sub-1/anat/sub-1_acq-ax_run-02_T2w.nii.gz",
            "sub-1/anat/sub-1_acq-sag_run-01_T2w.nii.gz",
            "sub-1/anat/sub-1_T1w.nii.gz",
        ]
    )
    path = tmp_path / "filter.json"
    path.write_text(json.dumps({"t2w": {"acquisition": ["ax", "cor"], "run": 1}}))
    chosen = stems(dataset, filters=read_filters(path))
    assert chosen == ["sub-1_T1w", "sub-1_acq-ax_run-01_T2w"]
    path.write_text(json.dumps({"t2w": {"acquisition": None}}))
    assert stems(dataset, filters=read_filters(path)) == ["sub-1_T1w", "sub-1_T2w"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{"bold": {}}', "expected one of .*, got bold"),
        ('{"t2w": {"aquisition": "ax"}}', "t2w: there is no entity aquisition"),
        ('{"t2w": ["ax"]}', "t2w: expected an object"),
        ("[]", "expected a JSON object, got a list"),
        ("{", "expected JSON"),
    ],
)
def test_a_filter_file_that_says_nothing_clear_is_refused(
    text: str, told: str, tmp_path: Path
) -> None:
    path = tmp_path / "filter.json"
    path.write_text(text)
    with pytest.raises(PoanError, match=told):
        read_filters(path)


def test_a_folder_without_description_and_a_derivative_are_refused(make_dataset: Any) -> None:
    dataset = make_dataset()
    description = dataset / "dataset_description.json"
    description.write_text('{"Name": "x", "DatasetType": "derivative"}')
    with pytest.raises(PoanError, match="expected a raw dataset"):
        find_scans(dataset)
    description.unlink()
    with pytest.raises(PoanError, match=r"there is no dataset_description\.json"):
        find_scans(dataset)


def test_the_deepest_metadata_that_apply_have_the_last_word(make_dataset: Any) -> None:
    dataset = make_dataset(["sub-1/anat/sub-1_acq-ax_T2w.nii.gz"])
    (scan,) = find_scans(dataset)
    for name, content in {
        "T2w.json": {"EchoTime": 1, "FlipAngle": 90},
        "acq-ax_T2w.json": {"EchoTime": 2},
        "acq-sag_T2w.json": {"EchoTime": 3},
        "T1w.json": {"EchoTime": 4},
        "sub-1/anat/sub-1_acq-ax_T2w.json": {"Manufacturer": "M"},
    }.items():
        (dataset / name).write_text(json.dumps(content))
    assert inherited(dataset, scan) == {"EchoTime": 2, "FlipAngle": 90, "Manufacturer": "M"}
