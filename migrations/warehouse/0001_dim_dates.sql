-- Days, from 2000 to 2049. It depends on nothing.
CREATE OR REPLACE VIEW dim_dates AS
SELECT
    toYYYYMMDD(day) AS date_key,
    day AS full_date,
    toDayOfWeek(day) AS day_of_week,
    toMonth(day) AS month,
    toQuarter(day) AS quarter,
    toYear(day) AS year
FROM (SELECT arrayJoin(arrayMap(number -> toDate('2000-01-01') + number, range(18263))) AS day)
