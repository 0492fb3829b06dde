-- Names that a grid held and claims no more, as when its operator stops a protocol
-- for a while. It gets them back when it claims them again.
CREATE TABLE domain_released (
	grid     TEXT NOT NULL REFERENCES peer (grid),
	proto    TEXT NOT NULL,
	domain   TEXT NOT NULL, -- normalised
	released INTEGER NOT NULL,
	PRIMARY KEY (grid, proto, domain)
) STRICT, WITHOUT ROWID;
