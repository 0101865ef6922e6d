-- The list of what was applied; and the schema, if it was created with it and holds
-- nothing else.
DO $postbus$
DECLARE
    ours boolean;
BEGIN
    SELECT EXISTS (SELECT FROM {schema}.schema_migration WHERE version = 0) INTO ours;
    DROP TABLE {schema}.schema_migration;
    IF ours THEN
        BEGIN
            DROP SCHEMA {schema};
        EXCEPTION WHEN dependent_objects_still_exist THEN
            NULL; -- tables of somebody else's have moved in
        END;
    END IF;
END
$postbus$;
