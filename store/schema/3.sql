-- The signing keys of the Matrix servers of peers. Times are Unix milliseconds, 0
-- where there is none. Keys are a JSON object, of key by key id.
CREATE TABLE matrix_key (
	server      TEXT PRIMARY KEY, -- server name, normalised
	peer        TEXT NOT NULL,    -- that held the claim when they were fetched
	keys        TEXT NOT NULL,
	fetched     INTEGER NOT NULL,
	valid_until INTEGER NOT NULL,
	changed     INTEGER NOT NULL DEFAULT 0,   -- when keys were last other ones
	before      TEXT NOT NULL DEFAULT '{}'    -- and which
) STRICT;
