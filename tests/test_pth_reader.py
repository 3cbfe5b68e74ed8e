"""The ``.pth`` reader: the same tensors as torch gives, and nothing but a sentence for any other file."""

import builtins
import io
import os
import pickle
import random
import struct
import subprocess
import sys
import tracemalloc
import zipfile

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sensorium.encoders import pth
from sensorium.encoders.pth import read_pth
from sensorium.errors import SensoriumError

MAGIC = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
PROTOCOL = b"\x80\x02M\xe9\x03."
LITTLE = pickle.dumps({"protocol_version": 1001, "little_endian": True, "type_sizes": {"int": 4}}, protocol=2)


# --- a writer of legacy files, opcode by opcode: needs no torch, and can lie about anything ---------------------------


def text(value):
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def number(value):
    raw = value.to_bytes(10, "little", signed=True)
    return b"\x8a" + bytes([len(raw)]) + raw


def storage(key="0", kind="FloatStorage", numel=6):
    return (
        b"(" + text("storage") + b"ctorch\n" + kind.encode() + b"\n" + text(key) + text("cpu") + number(numel) + b"NtQ"
    )


def tensor(shape=(2, 3), strides=(3, 1), offset=0, **kwargs):
    numbers = [b"(" + b"".join(map(number, numbers)) + b"t" for numbers in (shape, strides)]
    hooks = b"ccollections\nOrderedDict\n)R"
    arguments = storage(**kwargs) + number(offset) + numbers[0] + numbers[1] + b"\x89" + hooks
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + arguments + b"tR"


def mapping(**entries):
    items = b"".join(text(name) + value for name, value in entries.items())
    return b"\x80\x02ccollections\nOrderedDict\n)R(" + items + b"u."


def items(values, dtype="<f4"):
    array = np.asarray(values, dtype)
    return struct.pack("<q", array.size) + array.tobytes()


SIX = items(range(6))


def legacy(obj=None, keys=("0",), storages=SIX, magic=MAGIC, protocol=PROTOCOL, system=LITTLE):
    obj = mapping(w=tensor()) if obj is None else obj
    return magic + protocol + system + obj + pickle.dumps(list(keys), protocol=2) + storages


def zipped(obj=None, data=None, compression=zipfile.ZIP_STORED, **members):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        archive.writestr("archive/data.pkl", mapping(w=tensor()) if obj is None else obj)
        archive.writestr("archive/data/0", np.arange(6, dtype="<f4").tobytes() if data is None else data)
        for name, value in members.items():
            archive.writestr(f"archive/{name}", value)
    return buffer.getvalue()


@pytest.fixture
def read(tmp_path):
    def read(data):
        path = tmp_path / "weights.pth"
        path.write_bytes(data)
        return read_pth(path)

    return read


def refused(read, data):
    """The reason, after checking that it is one sentence that names the file."""
    with pytest.raises(SensoriumError) as caught:
        read(data)
    message = str(caught.value)
    assert "weights.pth" in message and "\n" not in message and message.endswith(".") and len(message) < 400
    return message


# --- good files -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [legacy, zipped])
def test_reads_a_hand_made_file(read, make):
    (name, array), *rest = read(make()).items()
    assert (name, rest) == ("w", [])
    np.testing.assert_array_equal(array, np.arange(6, dtype=np.float32).reshape(2, 3))
    assert array.dtype == np.float32 and not array.flags.writeable


def test_views_share_a_storage_with_offsets_and_strides(read):
    obj = mapping(
        whole=tensor(), turned=tensor((3, 2), (1, 3)), last=tensor((), (), offset=5), none=tensor((0, 3), (3, 1))
    )
    tensors = read(legacy(obj))
    np.testing.assert_array_equal(tensors["turned"], np.arange(6).reshape(2, 3).T)
    assert tensors["last"].shape == () and tensors["last"] == 5
    assert tensors["none"].shape == (0, 3)


@pytest.mark.parametrize("new", [False, True], ids=["legacy", "zip"])
def test_equals_torch_for_every_type(tmp_path, new):
    torch = pytest.importorskip("torch")
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(4, 5, 6, generator=generator)
    kinds = ["float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool"]
    state = {kind: (base * 50).abs().to(getattr(torch, kind)) for kind in kinds}
    state |= {
        "view": base[1:, :, 2],
        "turned": base.permute(2, 0, 1),
        "scalar": torch.tensor(7),
        "empty": torch.empty(0, 3),
    }
    state["parameter"] = torch.nn.Parameter(base[0])
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    for name, expected in (("state", state), ("module", module.state_dict())):
        path = tmp_path / f"{name}.pth"
        torch.save(expected, path, _use_new_zipfile_serialization=new)
        tensors = read_pth(path)
        assert list(tensors) == list(expected)
        for key, value in expected.items():
            value = value.detach()
            want = (value.float() if value.dtype == torch.bfloat16 else value).numpy()
            assert tensors[key].dtype == want.dtype and tensors[key].shape == want.shape
            np.testing.assert_array_equal(tensors[key], want)
            assert not tensors[key].flags.writeable


# --- hostile files ----------------------------------------------------------------------------------------------------


class Evil:
    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
@pytest.mark.parametrize("where", ["magic", "system", "obj", "value", "keys", "zip"])
def test_code_in_the_pickle_never_runs(read, tmp_path, protocol, where):
    witness = tmp_path / "witness"
    for evil in (
        Evil(os.system, f"touch {witness}"),
        Evil(builtins.eval, f"open({str(witness)!r}, 'w').close()"),
        Evil(subprocess.check_call, ["touch", str(witness)]),
    ):
        payload = pickle.dumps({"w": evil} if where == "value" else evil, protocol=protocol)
        good = {"value": "obj"}.get(where, where)
        if where == "zip":
            data = zipped(payload)
        elif where == "keys":
            data = MAGIC + PROTOCOL + LITTLE + mapping(w=tensor()) + payload
        else:
            data = legacy(**{good: payload})
        refused(read, data)
        assert not witness.exists()


def test_the_payloads_above_do_run_in_pickle(tmp_path):
    """Guards the test above: were its payloads harmless, it would prove nothing."""
    witness = tmp_path / "witness"
    pickle.loads(pickle.dumps(Evil(os.system, f"touch {witness}")))
    assert witness.exists()


@pytest.mark.parametrize(
    "name", ["os system", "builtins eval", "torch load", "torch.hub load", "numpy load", "torch FloatTensor"]
)
def test_any_other_name_is_refused_and_not_imported(read, name, monkeypatch):
    module, attribute = name.split()
    monkeypatch.setattr(builtins, "__import__", lambda *a, **k: pytest.fail(f"imports {a[0]}"))
    obj = b"\x80\x02c" + f"{module}\n{attribute}\n".encode() + b")R."
    message = refused(read, legacy(obj))
    assert f"{module}.{attribute}" in message


def test_known_names_cannot_be_called_out_of_place(read):
    refused(read, legacy(mapping(w=b"ctorch\nFloatStorage\n)R")))
    refused(read, legacy(mapping(w=b"ccollections\nOrderedDict\n(K\x01tR")))
    refused(read, legacy(mapping(w=b"ctorch._utils\n_rebuild_tensor_v2\n)R")))
    refused(read, legacy(mapping(w=b"X\x01\x00\x00\x00a)R")))


@pytest.mark.parametrize("make", [legacy, zipped])
def test_every_truncation_is_refused(read, make):
    whole = make()
    for size in range(len(whole)):
        refused(read, whole[:size])


@pytest.mark.parametrize("make", [legacy, zipped])
def test_every_flipped_byte_gives_tensors_or_a_sentence(read, make):
    whole = make()
    generator = random.Random(0)
    for at in range(len(whole)):
        data = bytearray(whole)
        data[at] = generator.randrange(256)
        try:
            tensors = read(bytes(data))
        except SensoriumError:
            continue
        assert all(isinstance(array, np.ndarray) for array in tensors.values())


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=300), st.sampled_from(["raw", "obj", "keys", "zip"]))
def test_noise_is_refused(tmp_path, noise, where):
    data = {
        "raw": noise,
        "obj": MAGIC + PROTOCOL + LITTLE + b"\x80\x02" + noise,
        "keys": MAGIC + PROTOCOL + LITTLE + mapping(w=tensor()) + noise,
        "zip": b"PK\x03\x04" + noise,
    }[where]
    path = tmp_path / "noise.pth"
    path.write_bytes(data)
    with pytest.raises(SensoriumError):
        read_pth(path)


@pytest.mark.parametrize(
    "data",
    [
        legacy(magic=pickle.dumps(1234, protocol=2)),
        legacy(protocol=pickle.dumps(1002, protocol=2)),
        legacy(system=pickle.dumps({"little_endian": False}, protocol=2)),
        legacy(pickle.dumps({}, protocol=2)),
        legacy(pickle.dumps([1, 2], protocol=2)),
        legacy(pickle.dumps({"epoch": 3}, protocol=2)),
        legacy(keys=()),
        legacy(keys=("0", "0"), storages=SIX * 2),
        legacy(keys=("1",)),
        legacy(keys=("0", "1"), storages=SIX * 2),
        legacy(storages=items(range(5))),
        legacy(storages=items(range(7))),
        legacy(storages=struct.pack("<q", -1)),
        legacy(mapping(a=tensor(), b=tensor(kind="LongStorage"))),
        legacy(mapping(w=tensor(kind="QInt8Storage"))),
        zipped(data=b"\0" * 23),
        zipped(compression=zipfile.ZIP_DEFLATED),
        zipped(byteorder=b"big"),
        zipped().replace(b"archive/data/0", b"archive/data/1"),
        zipped().replace(b"archive/data.pkl", b"archive/nope.pkl"),
        b"",
        b"<!DOCTYPE html><html>404</html>",
    ],
)
def test_inconsistent_files_are_refused(read, data):
    refused(read, data)


def test_a_compressed_storage_is_refused_rather_than_read_as_it_stands(read):
    buffer = io.BytesIO(zipped(mapping(w=tensor((400,), (1,), numel=400)), data=b"", pad=b"\1" * 2000))
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.writestr("archive/data/1", b"\0" * 1600, zipfile.ZIP_DEFLATED)
        archive.writestr("archive/more", b"\1" * 2000)
    data = buffer.getvalue().replace(b"archive/data/0", b"archive/data/2").replace(b"archive/data/1", b"archive/data/0")
    assert "compressed" in refused(read, data)


NEST = b"\x80\x02)q\x00" + b"h\x00h\x00\x86q\x00" * 60  # a tuple of 2**60 leaves, were one to walk it
DEEP = b"\x80\x02" + b")" + b"\x85" * 100_000  # a tuple in a tuple in a ...


@pytest.mark.timeout(60)
@pytest.mark.parametrize("nest", [NEST, DEEP], ids=["wide", "deep"])
@pytest.mark.parametrize("where", ["magic", "protocol", "system", "obj", "keys"])
def test_values_too_nested_to_walk_are_refused_unwalked(read, nest, where):
    if where == "keys":
        refused(read, MAGIC + PROTOCOL + LITTLE + mapping(w=tensor()) + nest + b".")
    else:
        refused(read, legacy(**{where: nest + b"."}))
    refused(read, legacy(mapping(w=tensor(), x=nest[2:])))
    refused(read, legacy(mapping(w=nest[2:] + b"Q")))


HUGE = 1 << 40


@pytest.mark.parametrize(
    "data",
    [
        legacy(mapping(w=tensor((HUGE,), (1,), numel=HUGE)), storages=struct.pack("<q", HUGE)),
        legacy(mapping(w=tensor((HUGE,), (0,)))),  # one item shown a million million times
        legacy(mapping(w=tensor((1 << 20,) * 3, (0, 0, 0)))),
        legacy(mapping(w=tensor((2, 3), (HUGE, 1)))),
        legacy(mapping(w=tensor((2, 3), (-3, 1), offset=3))),
        legacy(mapping(w=tensor(offset=1))),
        legacy(mapping(w=tensor((0,), (1,), offset=HUGE))),
        legacy(mapping(w=tensor((1,) * 40, (1,) * 40))),
        legacy(mapping(w=tensor((2, 3), (1,)))),
        legacy(mapping(w=tensor((1 << 60,), (1,), numel=1 << 60))),
        legacy(b"\x80\x02X\xff\xff\xff\xff"),
        legacy(b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7f}."),
        legacy(b"\x80\x02}r\xff\xff\xff\xff."),  # pickle would make room for 2**32 memo entries
        legacy(b"\x80\x02" + b"}" * 3_000_000),
        legacy(b"\x80\x02" + b"(" * 100_000 + b"t" * 100_000 + b"."),
        legacy(b"\x80\x02)q\x00" + b"h\x00h\x00\x86q\x00" * 60 + b"}h\x00K\x01s."),  # a key of 2**60 leaves to hash
    ],
    ids=range(16),
)
def test_sizes_that_lie_cost_no_memory(read, data):
    tracemalloc.start()
    try:
        refused(read, data)
        assert tracemalloc.get_traced_memory()[1] < (150 << 20 if len(data) > 1 << 20 else 20 << 20)
    finally:
        tracemalloc.stop()


def test_too_large_missing_and_not_a_file(read, tmp_path, monkeypatch):
    monkeypatch.setattr(pth, "MAX_FILE_BYTES", 100)
    assert "more than 100" in refused(read, legacy())
    with pytest.raises(SensoriumError, match="Cannot read"):
        read_pth(tmp_path / "absent.pth")
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(SensoriumError, match="no file"):
            read_pth(path)


def test_reads_without_torch_and_without_pickle(tmp_path):
    path = tmp_path / "w.pth"
    path.write_bytes(legacy())
    code = (
        "import sys\nfrom sensorium.encoders import pth\n"
        "assert not hasattr(pth, 'pickle')\n"
        f"assert pth.read_pth({str(path)!r})['w'].sum() == 15\nassert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
