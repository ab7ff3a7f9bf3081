"""Online: events in, recommendations out. Never imports torch."""
