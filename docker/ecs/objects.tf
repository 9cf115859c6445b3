# Payloads that are too large for SQS. Nobody removes them but this rule, since a message may be there twice, and a dead
# letter may be sent home: 13 days in its queue, 14 as a dead letter, 13 more once it is sent home.

resource "aws_s3_bucket_lifecycle_configuration" "payloads" {
  count = try(var.reports.expire_payloads, false) ? 1 : 0

  bucket = var.reports.bucket

  rule {
    id     = "${var.name}-payloads"
    status = "Enabled"

    filter {
      prefix = "${var.reports.prefix}/payloads/"
    }

    expiration {
      days = 45
    }

    # Of a bucket that keeps versions, what has expired is not to stay for ever.
    noncurrent_version_expiration {
      noncurrent_days = 1
    }

    # What a process that died has left of an upload.
    abort_incomplete_multipart_upload {
      days_after_initiation = 7
    }
  }
}
