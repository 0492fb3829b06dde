package store

import (
	"context"
	"database/sql"
	_ "embed" // the schema files
	"errors"
	"fmt"
)

// applicationID marks the file as yggate's (SQLite file format §1.3.17): "yggt".
const applicationID = 0x79676774

//go:embed schema/1.sql
var schema1 string

//go:embed schema/2.sql
var schema2 string

//go:embed schema/3.sql
var schema3 string

//go:embed schema/4.sql
var schema4 string

//go:embed schema/5.sql
var schema5 string

//go:embed schema/6.sql
var schema6 string

// migrations take the schema from version i to i+1. A released one is never
// changed; testdata holds a frozen database of each version to prove that.
var migrations = []string{schema1, schema2, schema3, schema4, schema5, schema6}

// migrate brings the schema up to date, in one transaction.
func migrate(ctx context.Context, db *sql.DB, migrations []string) (err error) {
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, ignoreDone(tx.Rollback())) }()

	var version, app, tables int
	if err := tx.QueryRow("SELECT user_version, application_id, (SELECT count(*) FROM sqlite_schema) FROM pragma_user_version, pragma_application_id").
		Scan(&version, &app, &tables); err != nil {
		return fmt.Errorf("read schema version: %w", err)
	}
	if app != applicationID && (tables > 0 || version > 0) {
		return errors.New("this is the database of another program; set another path for yggate's")
	}
	if version > len(migrations) {
		return fmt.Errorf("its schema is version %d and this yggate knows versions up to %d: a newer yggate wrote it; upgrade this one, or restore the backup from before", version, len(migrations))
	}
	if version == len(migrations) {
		return nil
	}
	for i, m := range migrations[version:] {
		if _, err := tx.Exec(m); err != nil {
			return fmt.Errorf("migrate schema to version %d: %w", version+i+1, err)
		}
	}
	// PRAGMA takes no parameters; both are numbers of our own.
	if _, err := tx.Exec(fmt.Sprintf("PRAGMA user_version = %d; PRAGMA application_id = %d", len(migrations), applicationID)); err != nil {
		return fmt.Errorf("write schema version: %w", err)
	}
	return tx.Commit()
}
