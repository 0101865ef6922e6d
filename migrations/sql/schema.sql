-- The schema, unless it is there, and in it the list of what was applied. A row with
-- version 0 says that the schema was created with it: the way down removes both.
DO $postbus$
BEGIN
    -- Asked of the tables, not of to_regclass: that answers from a cache which a wait
    -- for somebody else's migration does not bring up to date.
    IF NOT EXISTS (SELECT FROM pg_namespace WHERE nspname = '{name}') THEN
        -- The default search_path begins with "$user": every unqualified table name of
        -- the application would from now on be looked for in our schema first.
        IF current_user = '{name}' AND current_setting('search_path') LIKE '%$user%' THEN
            RAISE EXCEPTION 'it has the name of the connection''s role, and search_path looks into that schema before public, where the application''s own tables are: choose another schema name, or connect as another role'
                USING ERRCODE = 'PB002';
        END IF;
        CREATE SCHEMA {schema};
        CREATE TABLE {schema}.schema_migration (
            version    integer     PRIMARY KEY,
            name       text        NOT NULL,
            applied_at timestamptz NOT NULL DEFAULT clock_timestamp()
        );
        INSERT INTO {schema}.schema_migration (version, name) VALUES (0, 'schema');
    ELSIF NOT EXISTS (SELECT FROM pg_tables WHERE schemaname = '{name}' AND tablename = 'schema_migration') THEN
        CREATE TABLE {schema}.schema_migration (
            version    integer     PRIMARY KEY,
            name       text        NOT NULL,
            applied_at timestamptz NOT NULL DEFAULT clock_timestamp()
        );
    END IF;
END
$postbus$;
