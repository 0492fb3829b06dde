-- One way into the mesh may have come with the invites of several grids, and stays as
-- long as one of them does.
CREATE TABLE peering_of (
	uri     TEXT NOT NULL,
	grid    TEXT NOT NULL, -- whose invite named it
	created INTEGER NOT NULL,
	PRIMARY KEY (uri, grid)
) STRICT, WITHOUT ROWID;
INSERT INTO peering_of SELECT uri, grid, created FROM peering;
DROP TABLE peering;
ALTER TABLE peering_of RENAME TO peering;
