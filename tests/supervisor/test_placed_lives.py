"""What the record of a machine says of the lives of an app, and how soon it is to be written."""

from dataclasses import dataclass, field, replace

from onelane.cluster.coordination import Snapshot, StoredEntry
from onelane.cluster.following import Beginning, Message
from onelane.cluster.machines import AppPart, ClusterKeys, ClusterView, MachineRecord, record_bytes
from onelane.cluster.placements import AppEntry, Death, entry_bytes
from onelane.core.placement import Member, Placement
from onelane.core.placement_change import Gone
from onelane.supervisor.placed_lives import REPORTS_WITHIN_S, PlacedLives

KEYS = ClusterKeys("arena")
A, B, FAR = (Member(name, f"10.0.0.{n}:1", f"s{n}", n) for n, name in ((1, "a/lobby-0"), (2, "a/lobby-1"), (3, "b")))
PLACED = AppEntry(Placement(7, (A, B, FAR)), leases=((1, 21), (2, 21), (3, 22)))
CHANGING = PLACED.begun(Placement(8, (A, B, FAR), pins={"k": "b"}))


class Line:
    """The way to a life, which reports nothing by itself."""

    def __init__(self) -> None:
        self.told: list[Beginning | Message] = []

    async def begin(self, beginning: Beginning) -> None:
        self.told.append(beginning)

    async def tell(self, message: Message) -> None:
        self.told.append(message)

    async def leave(self) -> None:
        pass


@dataclass
class Site:
    """The machine a with two lives, whose record is written as it is announced."""

    announced: list[tuple[AppPart, float]] = field(default_factory=list)
    """What the record was to say, and within which time; each that was another than the one before."""

    def __post_init__(self) -> None:
        self._part = AppPart()
        self.placed = PlacedLives("lobby", "a", self._announce)
        for member in (A, B):
            self.placed.launched(member, Line(), follows=True)

    def _announce(self, *, within_s: float = 0.0) -> None:
        if self.placed.part != self._part:
            self._part = self.placed.part
            self.announced.append((self._part, within_s))

    async def follow(self, entry: AppEntry) -> None:
        record = MachineRecord(
            name="a",
            advertise="10.0.0.1",
            release="0",
            lease_s=5.0,
            start="a-1",
            apps={"lobby": self.placed.lives},
            parts={"lobby": self.placed.part},
        )
        key = KEYS.machine("a")
        entries = {
            key: StoredEntry(key, record_bytes(record), 1, 1, 21),
            KEYS.app("lobby"): StoredEntry(KEYS.app("lobby"), entry_bytes(entry), 1, 1),
        }
        await self.placed.follow(ClusterView(KEYS, Snapshot(1, entries)))


async def changing() -> Site:
    site = Site()
    for entry in (PLACED, CHANGING):
        await site.follow(entry)
    site.announced.clear()
    return site


async def test_the_reports_of_a_machine_are_written_together_once_its_last_life_has_reported() -> None:
    """What other machines have to report is not waited for."""
    site = await changing()
    for report in (site.placed.departed, site.placed.arrived):
        for member in (A, B):
            report(member.life, 8)
    parts, within_s = zip(*site.announced, strict=True)
    assert within_s == (REPORTS_WITHIN_S, REPORTS_WITHIN_S, REPORTS_WITHIN_S, 0.0)
    assert (parts[-1].epoch, parts[-1].departed, parts[-1].arrived) == (8, (1, 2), (1, 2))


async def test_a_life_that_has_died_is_not_waited_for() -> None:
    site = await changing()
    site.placed.ended(B.life)
    for report in (site.placed.departed, site.placed.arrived):
        report(A.life, 8)
    assert [within_s for _, within_s in site.announced] == [REPORTS_WITHIN_S, 0.0]


async def test_a_change_that_begins_or_ends_is_no_reason_to_write_the_record() -> None:
    site = await changing()
    for report in (site.placed.departed, site.placed.arrived):
        for member in (A, B):
            report(member.life, 8)
    reported = site.placed.part
    site.announced.clear()
    assert CHANGING.following is not None
    placed = CHANGING.ended(CHANGING.following)
    await site.follow(placed)
    await site.follow(placed.begun(Placement(9, (A, B, FAR))))
    assert (site.announced, site.placed.part) == ([], reported)
    site.placed.departed(A.life, 9)
    part, within_s = site.announced[-1]
    assert (part.epoch, part.departed, part.arrived, within_s) == (9, (1,), (), REPORTS_WITHIN_S)


async def test_a_life_that_begins_in_a_change_is_told_at_once_who_has_died_in_it() -> None:
    """There may be no other view: it waits for the dead one, and nothing else happens in the cluster."""
    before = Member("a/lobby-0", "10.0.0.9:1", "s9", 9)
    begun = AppEntry(Placement(7, (before,)), leases=((9, 20),)).begun(Placement(8, (A,)))
    site = Site()
    line = Line()
    site.placed.launched(A, line, follows=True)
    await site.follow(replace(begun, deaths=(Death(9),)))
    beginning, *later = line.told
    assert isinstance(beginning, Beginning)
    assert beginning.prepare is not None
    assert later == [Gone(9)]
