"""VoxCeleb's text trees: the published file, both units, gaps, test people, and files that are broken."""

import os
import zipfile

import pytest

from stages.base import Drop
from stages.sources import voxceleb
from stages.sources.lists import box_at, refuse, split_of
from stages.sources.voxceleb import VoxCeleb, VoxMetadata

HEADER = (
    "Identity  : \t{person}\nReference : \t{video}\nOffset    : \t2\nFV Conf   : \t16.140\t(1)\n"
    "ASD Conf  : \t5.142\n\nFRAME \tX \tY \tW \tH \n"
)


@pytest.fixture
def root(tmp_path):
    """A folder whose name has no "test" in it, unlike pytest's."""
    folder = tmp_path / "lists"
    folder.mkdir()
    return folder


def text(frames, box=(0.123, 0.136, 0.422, 0.749), person="id00017", video="_mjZ87sK6cA"):
    rows = "".join(f"{frame:06d} \t" + " \t".join(f"{v:.3f}" for v in box) + " \n" for frame in frames)
    return HEADER.format(person=person, video=video) + rows


def put(root, content, name="txt/id00017/_mjZ87sK6cA/00001.txt"):
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode())
    return path


def listed(root, version=2, **settings):
    return list(VoxCeleb(str(root), version, **{"held_out_percent": 0, **settings}).clips(None))


def test_the_published_file_becomes_a_part_with_person_seconds_and_box(root):
    put(root, text(range(8809, 8909)))
    (clip,) = listed(root)
    (span,) = clip.listed["spans"]
    assert (clip.identity, clip.dataset, clip.id) == ("id00017", "vox2", "vox2-id00017-_mjZ87sK6cA")
    assert clip.video == "https://www.youtube.com/watch?v=_mjZ87sK6cA"
    assert (span["start_s"], span["end_s"], span["frames"]) == (8809 / 25, 8909 / 25, [8809, 8909])
    left, top, right, bottom = box_at(span, 353.0, 1280, 720)
    assert (left, top, right, bottom) == pytest.approx((0.123 * 1280, 0.136 * 720, 0.545 * 1280, 0.885 * 720))
    assert span["row"]["FV Conf"] == "16.140\t(1)"
    assert span["row"]["ASD Conf"] == "5.142"


def test_boxes_of_voxceleb1_are_pixels_of_a_picture_360_high(root):
    put(root, text(range(100, 200), (180, 36, 90, 108)))
    (clip,) = listed(root, version=1)
    assert box_at(clip.listed["spans"][0], 5.0, 1280, 720) == pytest.approx((360, 72, 540, 288))


def test_a_moving_box_is_followed_between_the_kept_rows(root):
    rows = text(range(250), (0.1, 0.1, 0.2, 0.2)).split("\n")
    for n in range(250):
        rows[7 + n] = f"{n:06d} \t{0.1 + n / 500:.4f} \t0.1 \t0.2 \t0.2 "
    put(root, "\n".join(rows))
    (span,) = listed(root)[0].listed["spans"]
    for n in (0, 33, 130, 240, 249):
        assert box_at(span, n / 25, 500, 500)[0] == pytest.approx(50 + n, abs=0.1)


@pytest.mark.parametrize(
    ("version", "box", "cure"), [(1, (0.1, 0.1, 0.4, 0.4), 2), (2, (180, 36, 90, 108), 1)]
)
def test_the_wrong_version_is_noticed_at_the_first_file(root, version, box, cure):
    put(root, text(range(100), box))
    with pytest.raises(ValueError, match=f"set version: {cure}"):
        listed(root, version=version)


def test_a_gap_in_the_frames_makes_two_parts(root):
    put(root, text([*range(100, 150), *range(180, 260)]))
    (clip,) = listed(root)
    assert [(s["key"], s["frames"]) for s in clip.listed["spans"]] == [
        ("00001-0", [100, 150]), ("00001-1", [180, 260]),
    ]


def test_utterances_of_a_video_are_one_unit_and_people_stay_apart(root):
    for name in ("id00017/_mjZ87sK6cA/00001", "id00017/_mjZ87sK6cA/00002", "id00017/-bcdefghij0/00001",
                 "id00018/_mjZ87sK6cA/00001"):
        person, video, _ = name.split("/")
        put(root, text(range(60), person=person, video=video), f"txt/{name}.txt")
    clips = listed(root)
    assert [(c.identity, c.source[-11:], len(c.listed["spans"])) for c in clips] == [
        ("id00017", "-bcdefghij0", 1), ("id00017", "_mjZ87sK6cA", 2), ("id00018", "_mjZ87sK6cA", 1),
    ]
    assert len({c.id for c in clips}) == 3


def test_a_zip_gives_the_same_units_as_its_folder(root):
    put(root / "tree", text(range(60)))
    with zipfile.ZipFile(root / "vox2_dev_txt.zip", "w") as archive:
        archive.writestr("txt/id00017/_mjZ87sK6cA/00001.txt", text(range(60)).replace("\n", "\r\n"))
    folder, packed = listed(root / "tree"), listed(root / "vox2_dev_txt.zip")
    assert [c.digest() for c in folder] == [c.digest() for c in packed]


@pytest.mark.parametrize("name", ["vox2_test_txt/txt", "test/txt"])
def test_official_test_people_are_rejected_from_train_and_can_be_asked_for(root, name):
    put(root, text(range(60)), f"{name}/id00017/_mjZ87sK6cA/00001.txt")
    (rejected,) = refuse(listed(root)[0])
    assert (rejected.reason, rejected.detail) == ("other split", "test")
    assert list(refuse(listed(root, splits=["test"])[0])) == []


def test_a_folder_called_testimony_is_no_test_folder(root):
    put(root, text(range(60)), "testimony/id00017/_mjZ87sK6cA/00001.txt")
    assert list(refuse(listed(root)[0])) == []


def test_the_40_test_people_of_voxceleb1_are_known_by_number(root):
    for person in ("id10269", "id10270", "id10309", "id10310"):
        put(root, text(range(60), (90, 90, 90, 90), person), f"{person}/_mjZ87sK6cA/00001.txt")
    splits = [c.listed["spans"][0]["split"] for c in listed(root, version=1)]
    assert splits == ["train", "test", "test", "train"]


def test_further_test_people_come_from_a_file(root):
    put(root, text(range(60)))
    people = root / "people.txt"
    people.write_bytes(b"id00061\r\nid00017\r\n")
    assert listed(root, test_people=str(people))[0].listed["spans"][0]["split"] == "test"


def test_people_are_held_out_whole_by_a_hash_that_additions_do_not_change(root):
    people = [f"id{n:05d}" for n in range(300)]
    for person in people:
        put(root, text(range(3), person=person), f"{person}/_mjZ87sK6cA/00001.txt")
    splits = {c.identity: c.listed["spans"][0]["split"] for c in listed(root, held_out_percent=20)}
    held = [p for p, split in splits.items() if split == "held-out"]
    assert 35 <= len(held) <= 85
    assert held == [p for p in people if split_of(p, 20) == "held-out"]


@pytest.mark.parametrize(
    "content",
    ["", "Identity : x\n", HEADER.format(person="id00017", video="_mjZ87sK6cA"), text(range(9))[:-9],
     text([5, 4, 6]), text(range(9), video="00000000000"), text(range(9)).replace("0.136", "nan"),
     text(range(9)).replace("0.136", "x")],
)
def test_a_broken_file_is_one_rejected_part_and_the_others_live(root, content):
    put(root, text(range(60)), "txt/id00017/_mjZ87sK6cA/00000.txt")
    put(root, content)
    (clip,) = listed(root)
    (rejected,) = refuse(clip)
    assert rejected.reason == "bad row"
    assert "00001.txt" in rejected.detail
    assert str(root) not in rejected.detail
    assert [s["key"] for s in clip.listed["spans"]] == ["00000"]


def test_a_folder_that_is_no_video_id_is_a_rejected_unit(root):
    put(root, text(range(60), video="oops"), "txt/id00017/oops/00001.txt")
    with pytest.raises(Drop, match="no YouTube id"):
        list(refuse(listed(root)[0]))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"version": 3}, "version"), ({"splits": ["dev"]}, "splits"),
        ({"held_out_percent": 200}, "held_out_percent"),
    ],
)
def test_a_wrong_setting_is_refused_by_name(root, settings, message):
    with pytest.raises(ValueError, match=f"^{message}:"):
        listed(root, **settings)


def test_nothing_there_is_one_clear_line(root):
    with pytest.raises(ValueError, match="holds no id#####"):
        listed(root)
    with pytest.raises(ValueError, match="does not exist"):
        listed(root / "nowhere")
    (root / "a.zip").write_bytes(b"PK\x03\x04 no zip")
    with pytest.raises(ValueError, match="no sound zip"):
        listed(root / "a.zip")


VOX_CSV = "video_id,start,end,bbox,fps,width,height,partition,person_id"


def metadata(root, *rows, header=VOX_CSV, **settings):
    path = root / "vox-metadata.csv"
    path.write_bytes(("\r\n".join([header, *rows]) + "\r\n").encode("utf-8-sig"))
    return list(VoxMetadata(str(path), **{"held_out_percent": 0, **settings}).clips(None))


def test_the_published_row_of_the_metadata_keeps_its_exclusive_end_and_its_box(root):
    (clip,) = metadata(root, "WMh3ye5tBsE,3657,3994,624-48-1018-553,25,1280,720,train,id10005")
    (span,) = clip.listed["spans"]
    assert (span["start_s"], span["end_s"], span["frames"]) == (3657 / 25, 3994 / 25, [3657, 3994])
    assert box_at(span, 150.0, 1280, 720) == pytest.approx((624, 48, 1018, 553), abs=0.01)
    assert box_at(span, 150.0, 640, 360) == pytest.approx((312, 24, 509, 276.5), abs=0.01)
    assert clip.identity == "id10005"


def test_a_bad_row_of_the_metadata_is_a_unit_of_its_own(root):
    clips = metadata(
        root, "WMh3ye5tBsE,3657", "WMh3ye5tBsE,9,3,1-1-2-2,25,9,9,train,id10005",
        "x,1,2,1-1-2-2,25,9,9,train,p",
        "WMh3ye5tBsE,3657,3994,624-48-1018-553,25,1280,720,test,id10005",
    )
    assert [c.listed.get("error", "") for c in clips] == ["bad row"] * 3 + [""]
    assert [c.listed["detail"].split(":")[1] for c in clips[:3]] == ["2", "3", "4"]
    assert clips[3].listed["spans"][0]["error"] == "other split"
    with pytest.raises(ValueError, match="no column 'bbox'"):
        metadata(root, header="video_id,start,end")


def test_a_member_of_a_zip_that_cannot_be_unpacked_is_rejected_alone(root, monkeypatch):
    path = root / "vox2_dev_txt.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(4):
            archive.writestr(f"txt/id00017/_mjZ87sK6cA/{number:05d}.txt", text(range(100, 300)))
        archive.writestr("txt/id00017/_mjZ87sK6cA/99999.txt", bytes(voxceleb.MOST_TEXT + 1))
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        broken, encrypted, unknown, *_ = archive.infolist()
    data[broken.header_offset + 80] ^= 255
    data[encrypted.header_offset + 6] |= 1                 # its flag in both headers
    entries = [at for at in range(len(data)) if data[at:at + 4] == b"PK\x01\x02"]
    data[entries[1] + 8] |= 1
    data[entries[2] + 10] = data[unknown.header_offset + 8] = 97       # of compressions
    path.write_bytes(data)
    (clip,) = listed(path)
    assert [span.get("error", "") for span in clip.listed["spans"]] == ["bad row"] * 3 + ["", "bad row"]
    assert "more than" in clip.listed["spans"][4]["detail"]


def test_what_is_no_file_is_rejected_alone(root):
    path = put(root, text(range(100, 200)))
    path.with_name("00002.txt").mkdir()
    os.mkfifo(path.with_name("00003.txt"))
    path.with_name("00004.txt").symlink_to("/nowhere")
    (clip,) = listed(root)
    assert [span.get("error", "") for span in clip.listed["spans"]] == [""] + ["bad row"] * 3


def test_a_frame_beyond_all_videos_is_rejected(root):
    put(root, text([100]) + "1e300 \t0.1 \t0.1 \t0.4 \t0.7 \n")
    (clip,) = listed(root)
    assert "out of range" in clip.listed["spans"][0]["detail"]


def test_metadata_that_is_no_csv_is_refused_with_its_line(root):
    path = put(root, ",".join(VoxMetadata.COLUMNS) + "\n" + "x" * 200_000, "vox-metadata.csv")
    with pytest.raises(ValueError, match=r"vox-metadata\.csv:\d+: is no sound csv"):
        list(VoxMetadata(str(path)).clips(None))
