"""What is remembered of agents beside their being there."""

from core.presence import Presence


def test_pauses_add_up_over_agents_and_over_their_runs() -> None:
    presence = Presence(started_at=0)
    for worker, seconds in (("a", 1.0), ("b", 2.0), ("a", 1.5), ("a", 1.5), ("a", 0.25)):
        presence.paused(worker, seconds)
    assert presence.paused_seconds == 1.5 + 0.25 + 2.0
    assert presence.paused_seconds_of("a") == 0.25
    assert presence.paused_seconds_of("nobody") == 0.0
    assert "nobody" not in presence.workers
