"""A program's warps in numpy, that run the PTX of the quantised product as it goes to the assembler.

Copies land only when they are waited for, tensor cores take the fragments of the PTX manual, and no two warps write one
place of shared memory. An instruction that is not known here is an error.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import numpy as np

LANES = np.arange(32)
SHARED = 48 << 10


def signed_bytes(words: np.ndarray) -> np.ndarray:
    return words.astype(np.uint32)[..., None].view(np.int8).astype(np.int64)


def unsigned_bytes(words: np.ndarray) -> np.ndarray:
    return words.astype(np.uint32)[..., None].view(np.uint8).astype(np.int64)


def mma(a: list[np.ndarray], b: list[np.ndarray], c: list[np.ndarray]) -> list[np.ndarray]:
    """`mma.m16n8k32` of one warp by the fragments of the PTX manual."""
    g, t = LANES // 4, LANES % 4
    A, B, C = (np.zeros(shape, dtype=np.int64) for shape in ((16, 32), (32, 8), (16, 8)))
    for i, register in enumerate(a):
        A[(g + 8 * (i % 2))[:, None], (4 * t + 16 * (i // 2))[:, None] + np.arange(4)] = signed_bytes(register)
    for i, register in enumerate(b):
        B[(4 * t + 16 * i)[:, None] + np.arange(4), g[:, None]] = unsigned_bytes(register)
    for i, register in enumerate(c):
        C[g + 8 * (i // 2), 2 * t + i % 2] = register
    D = A @ B + C
    return [D[g + 8 * (i // 2), 2 * t + i % 2] for i in range(4)]


_COMPARE = {
    "eq": np.equal, "ne": np.not_equal, "gt": np.greater, "ge": np.greater_equal, "le": np.less_equal, "lt": np.less,
}  # fmt: skip


class Block:
    """Shared memory and what is common to a program's warps."""

    def __init__(self, text: str, memory: np.ndarray, room: int) -> None:
        body = re.sub(r"(?<!\S)[{}](?=\s|$)", "", text.replace("%tid.x", "TID"))
        self.statements: list[str] = []
        self.labels: dict[str, int] = {}
        for each in re.split(r";|(?<=:)\s", body):
            if each.strip().endswith(":"):
                self.labels[each.strip()[:-1]] = len(self.statements)
            elif each.strip():
                self.statements.append(each.strip())
        self.memory = memory
        self.shared = np.full(SHARED, 0xAB, dtype=np.uint8)
        self.owner = np.full(SHARED, -1)
        assert room <= SHARED
        self.bytes = room


class Warp:
    """Registers of 32 lanes, int64 each: b32 values lie in 0 .. 2^32 - 1 where the sign is not asked for."""

    def __init__(self, block: Block, number: int, given: dict[str, np.ndarray]) -> None:
        self.block, self.number, self.at = block, number, 0
        lanes = slice(32 * number, 32 * number + 32)
        self.r = {
            name: (value[lanes] if value.size > 32 else np.broadcast_to(value, 32)).copy()
            for name, value in given.items()
        }
        self.r |= {"TID": 32 * number + LANES, "larosa_shared": np.zeros(32, dtype=np.int64)}
        self.groups: list[list[tuple[int, np.ndarray]]] = []
        self.open: list[tuple[int, np.ndarray]] = []

    def value(self, name: str) -> np.ndarray:
        if name in self.r:
            return self.r[name]
        if name.startswith("0f"):
            return np.full(32, np.array([int(name[2:], 16)], dtype=np.uint32).view(np.float32)[0], dtype=np.float32)
        return np.full(32, int(name, 0), dtype=np.int64)

    def unsigned(self, name: str) -> np.ndarray:
        return self.value(name).astype(np.int64) & 0xFFFFFFFF

    def signed(self, name: str) -> np.ndarray:
        return ((self.unsigned(name) + 2**31) & 0xFFFFFFFF) - 2**31

    def put(self, name: str, found: np.ndarray, lanes: np.ndarray) -> None:
        old = self.r.get(name)
        self.r[name] = found.copy() if old is None or old.dtype != found.dtype else np.where(lanes, found, old)

    def address(self, operand: str) -> np.ndarray:
        found = re.fullmatch(r"\[(\S+?)(?:\+(\d+))?\]", operand)
        assert found is not None, operand
        return self.value(found[1]) + int(found[2] or 0)

    def write_shared(self, at: int, data: np.ndarray) -> None:
        assert 0 <= at <= self.block.bytes - len(data)
        assert set(self.block.owner[at : at + len(data)]) <= {-1, self.number}, "two warps write one place"
        self.block.owner[at : at + len(data)] = self.number
        self.block.shared[at : at + len(data)] = data

    def land(self, left: int) -> None:
        while len(self.groups) > left:
            for at, data in self.groups.pop(0):
                self.write_shared(at, data)

    def load(self, memory: np.ndarray, operand: str, size: int, lanes: np.ndarray) -> np.ndarray:
        found = np.zeros((32, size), dtype=np.uint8)
        for lane in LANES[lanes]:
            at = int(self.address(operand)[lane])
            assert at % size == 0
            assert at + size <= len(memory), "a load from behind the end"
            found[lane] = memory[at : at + size]
        return found

    def run(self) -> Iterator[None]:
        """Statement by statement; stops at every `bar.sync`."""
        while self.at < len(self.block.statements):
            statement = self.block.statements[self.at]
            self.at += 1
            lanes = np.ones(32, dtype=bool)
            if statement.startswith("@"):
                guard, statement = statement.split(None, 1)
                lanes = self.r[guard[1:]].astype(bool)
            name, _, rest = statement.partition(" ")
            if name in (".reg", ".shared", "bar.warp.sync", "griddepcontrol.launch_dependents"):
                continue
            if name == "bar.sync":
                yield
            elif name == "bra":
                assert lanes.all() or not lanes.any(), "a warp's lanes part"
                self.at = self.block.labels[rest] if lanes.all() else self.at
            else:
                self.do(name, [each.strip() for each in re.split(r",\s*(?![^{]*\})", rest)] if rest else [], lanes)

    def do(self, name: str, o: list[str], lanes: np.ndarray) -> None:
        u, s, shared = self.unsigned, self.signed, self.block.shared
        if name == "mov.b64" and o[0].startswith("{"):
            low, high = o[0].strip("{}").split(", ")
            whole = self.value(o[1]).astype(np.int64).view(np.uint64)
            self.put(low, (whole & np.uint64(0xFFFFFFFF)).astype(np.int64), lanes)
            self.put(high, (whole >> np.uint64(32)).astype(np.int64), lanes)
        elif name == "mov.b64" and o[1].startswith("{"):
            low, high = (self.unsigned(each).astype(np.uint64) for each in o[1].strip("{}").split(", "))
            self.put(o[0], (low | (high << np.uint64(32))).view(np.int64), lanes)
        elif name == "mov.b32" and o[0] in ("entry", "factor"):
            self.put(o[0], u(o[1]).astype(np.uint32).view(np.float32), lanes)
        elif name == "mov.b32" and self.value(o[1]).dtype == np.float32:
            self.put(o[0], self.value(o[1]).view(np.uint32).astype(np.int64), lanes)
        elif name.startswith("mov"):
            self.put(o[0], self.value(o[1]), lanes)
        elif name in ("cvt.u32.u16", "cvt.u16.u32"):
            self.put(o[0], u(o[1]) & 0xFFFF, lanes)
        elif name == "cvt.f32.f16":
            self.put(o[0], u(o[1]).astype(np.uint16).view(np.float16).astype(np.float32), lanes)
        elif name == "cvt.s64.s32":
            self.put(o[0], s(o[1]), lanes)
        elif name in (
            "and.b32",
            "shl.b32",
            "shr.u32",
            "add.u32",
            "sub.u32",
            "sub.s32",
            "mad.lo.u32",
            "mul.lo.u32",
            "or.b32",
            "xor.b32",
            "prmt.b32",
            "lop3.b32",
        ):
            self.put(o[0], self.whole(name, [u(each) for each in o[1:]]) & 0xFFFFFFFF, lanes)
        elif name in ("add.u64", "add.s64"):
            self.put(o[0], self.value(o[1]) + self.value(o[2]), lanes)
        elif name == "mad.wide.u32":
            self.put(o[0], u(o[1]) * u(o[2]) + self.value(o[3]), lanes)
        elif name == "mad.wide.s32":
            self.put(o[0], s(o[1]) * s(o[2]) + self.value(o[3]), lanes)
        elif name.startswith("setp"):
            _, how, kind = name.split(".")
            first, second = (s(each) if kind == "s32" else u(each) for each in o[1:])
            self.put(o[0], _COMPARE[how](first, second), lanes)
        elif name == "and.pred":
            self.put(o[0], self.r[o[1]] & self.r[o[2]], lanes)
        elif name == "set.geu.u32.bf16x2":
            self.put(o[0], self.reach(u(o[1]), u(o[2]), lambda v: (v << 16).astype(np.uint32).view(np.float32)), lanes)
        elif name == "set.geu.u32.f16x2":
            self.put(o[0], self.reach(u(o[1]), u(o[2]), lambda v: v.astype(np.uint16).view(np.float16)), lanes)
        elif name == "max.u16x2":
            high, low = np.maximum(u(o[1]) >> 16, u(o[2]) >> 16), np.maximum(u(o[1]) & 0xFFFF, u(o[2]) & 0xFFFF)
            self.put(o[0], high << 16 | low, lanes)
        elif name == "max.u32":
            self.put(o[0], np.maximum(u(o[1]), u(o[2])), lanes)
        elif name == "shr.s32":
            self.put(o[0], (s(o[1]) >> u(o[2])) & 0xFFFFFFFF, lanes)
        elif name == "redux.sync.add.s32":
            self.put(o[0], np.broadcast_to(u(o[1]).sum() & 0xFFFFFFFF, 32), lanes)
        elif name == "redux.sync.max.u32":
            self.put(o[0], np.broadcast_to(u(o[1]).max(), 32), lanes)
        elif name == "vote.sync.ballot.b32":
            self.put(o[0], np.broadcast_to((self.r[o[1]].astype(np.int64) << LANES).sum(), 32), lanes)
        elif name == "bfind.u32":
            found = [int(each).bit_length() - 1 for each in u(o[1])]
            self.put(o[0], np.array(found, dtype=np.int64) & 0xFFFFFFFF, lanes)
        elif name == "shfl.sync.down.b32":
            value, within = o[0].split("|")
            source = LANES + int(o[2])
            self.put(within, source < 32, lanes)
            self.put(value, self.value(o[1])[np.minimum(source, 31)], lanes)
        elif name in ("red.shared.add.u32", "red.shared.max.u32"):
            for lane in LANES[lanes]:
                at, new = int(self.address(o[0])[lane]), int(u(o[1])[lane])
                assert at % 4 == 0
                cell = shared[at : at + 4].view(np.uint32)
                cell[0] = cell[0] + new if "add" in name else max(int(cell[0]), new)
        elif name == "selp.b32":
            self.put(o[0], np.where(self.r[o[3]], self.value(o[1]), self.value(o[2])), lanes)
        elif name == "shfl.sync.bfly.b32":
            self.put(o[0], self.value(o[1])[LANES ^ int(o[2])], lanes)
        elif name == "shfl.sync.idx.b32":
            self.put(o[0], self.value(o[1])[u(o[2]) & 31], lanes)
        elif name == "mul.rn.f32":
            self.put(o[0], self.value(o[1]) * self.value(o[2]), lanes)
        elif name == "add.rn.f32":
            self.put(o[0], self.value(o[1]) + self.value(o[2]), lanes)
        elif name == "fma.rn.f32":
            product_, third = self.value(o[1]).astype(np.float64) * self.value(o[2]), self.value(o[3])
            self.put(o[0], (product_ + third).astype(np.float32), lanes)
        elif name == "ld.global.b32":
            self.put(o[0], self.load(self.block.memory, o[1], 4, lanes).view(np.uint32)[:, 0].astype(np.int64), lanes)
        elif name == "ld.shared.b32":
            self.put(o[0], self.load(shared, o[1], 4, lanes).view(np.uint32)[:, 0].astype(np.int64), lanes)
        elif name == "ld.global.u16":
            self.put(o[0], self.load(self.block.memory, o[1], 2, lanes).view(np.uint16)[:, 0].astype(np.int64), lanes)
        elif name in ("ld.shared.v4.b32", "ld.shared.v2.b32", "ld.shared.b64"):
            names = o[0].strip("{}").split(", ")
            kind = np.int64 if name.endswith("b64") else np.uint32
            found = self.load(shared, o[1], len(names) * np.dtype(kind).itemsize, lanes).view(kind)
            for i, each in enumerate(names):
                self.put(each, found[:, i].astype(np.int64), lanes)
        elif name in ("st.shared.v4.b32", "st.shared.v2.b32", "st.shared.v2.b64"):
            kind = np.int64 if name.endswith("b64") else np.uint32
            names = o[1].strip("{}").split(", ")
            values = np.stack([self.value(each).astype(np.int64) for each in names], 1).astype(kind)
            for lane in LANES[lanes]:
                assert self.address(o[0])[lane] % values[0].nbytes == 0
                self.write_shared(int(self.address(o[0])[lane]), np.ascontiguousarray(values[lane]).view(np.uint8))
        elif name.startswith("cp.async.c") and "shared" in name:
            room, sizes = int(o[2]), self.value(o[3])
            for lane in LANES[lanes]:
                data, start = np.zeros(room, dtype=np.uint8), int(self.address(o[1])[lane])
                assert sizes[lane] in (0, room)
                assert self.address(o[0])[lane] % room == 0
                if sizes[lane]:
                    assert start % room == 0
                    assert start + room <= len(self.block.memory), "a copy from behind the end"
                    data = self.block.memory[start : start + room].copy()
                self.open.append((int(self.address(o[0])[lane]), data))
        elif name == "cp.async.commit_group":
            self.groups.append(self.open)
            self.open = []
        elif name == "cp.async.wait_group":
            self.land(int(o[0]))
        elif name.startswith("mma.sync.aligned.m16n8k32.row.col.s32.s8.u8.s32"):
            d, a, b, c = (each.strip("{}").split(", ") for each in o)
            found = mma([u(each) for each in a], [u(each) for each in b], [s(each) for each in c])
            for each, value in zip(d, found, strict=True):
                self.put(each, value, lanes)
        else:
            raise AssertionError(f"unknown instruction {name} {o}")

    @staticmethod
    def reach(words: np.ndarray, limits: np.ndarray, number: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        """0xFFFF in each half that is no smaller, or NaN."""
        low, high = (~(number(words >> by & 0xFFFF) < number(limits >> by & 0xFFFF)) for by in (0, 16))
        return low * 0xFFFF + high * 0xFFFF0000

    @staticmethod
    def whole(name: str, v: list[np.ndarray]) -> np.ndarray:
        if name == "prmt.b32":
            pool = np.concatenate([unsigned_bytes(v[0]), unsigned_bytes(v[1])], 1)
            picks = (v[2][:, None] >> (4 * np.arange(4))) & 7
            return (np.take_along_axis(pool, picks, 1) << (8 * np.arange(4))).sum(1)
        if name == "lop3.b32":
            found, table = np.zeros(32, dtype=np.int64), int(v[3][0])
            for case in range(8):
                parts = [each if case >> (2 - i) & 1 else ~each for i, each in enumerate(v[:3])]
                found |= (parts[0] & parts[1] & parts[2]) if table >> case & 1 else 0
            return found
        return {
            "and.b32": lambda: v[0] & v[1],
            "or.b32": lambda: v[0] | v[1],
            "xor.b32": lambda: v[0] ^ v[1],
            "mul.lo.u32": lambda: v[0] * v[1],
            "shl.b32": lambda: v[0] << v[1],
            "shr.u32": lambda: v[0] >> v[1],
            "add.u32": lambda: v[0] + v[1],
            "sub.u32": lambda: v[0] - v[1],
            "sub.s32": lambda: v[0] - v[1],
            "mad.lo.u32": lambda: v[0] * v[1] + v[2],
        }[name]()


def run_block(
    block: Block, warps: int, given: dict[str, np.ndarray], barriers: int, results: list[str]
) -> list[np.ndarray]:
    """The registers `results` of all threads after the block's text, which has so many barriers.

    given: registers of all threads, of a warp's 32 lanes if they are the same in each, or one number.
    """
    each = [Warp(block, number, given) for number in range(warps)]
    running = [warp.run() for warp in each]
    for _ in range(barriers + 1):
        for warp in running:
            next(warp, None)
    assert all(warp.at == len(block.statements) for warp in each)
    return [np.concatenate([warp.r[name] for warp in each]) for name in results]
